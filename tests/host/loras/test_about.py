"""What files and notes beside them say of a LoRA, as trainers and programs write it; and what hostile ones do not."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_conductor.host.core import base_called, base_of, printable
from lora_conductor.host.loras.about import _BASES as BASE_KEYS
from lora_conductor.host.loras.about import MOST_IN_PROMPT, MOST_OF_A_WORD, MOST_WORDS, about
from lora_conductor.host.loras.notes import MOST_OF_A_NOTE

from .. import tiny

TENSORS = {"lora_unet_x.lora_down.weight": torch.zeros(4, 8), "lora_unet_x.lora_up.weight": torch.zeros(8, 4)}


@pytest.fixture
def lora(tmp_path):
    """Writes a file with a header, and notes by their endings."""

    def write(metadata=None, tensors=TENSORS, **notes):
        path = tmp_path / "my.lora.safetensors"
        save_file(tensors, path, metadata)
        for ending, content in notes.items():
            text = content if isinstance(content, bytes) else content.encode()
            (tmp_path / f"my.lora.{ending.replace('__', '.').replace('_', '-')}").write_bytes(text)
        return str(path)

    return write


def captions(counts, images=None):
    said = {"ss_tag_frequency": json.dumps(counts)}
    if images:
        said["ss_dataset_dirs"] = json.dumps({k: {"n_repeats": 3, "img_count": n} for k, n in images.items()})
    return said


SAID = {
    "nothing": ({}, {}, (), ""),
    "model spec": ({"modelspec.trigger_phrase": "ohwx man"}, {}, ("ohwx man",), "modelspec.trigger_phrase"),
    "list in a text": ({"ss_trigger_words": '["a b", "c"]'}, {}, ("a b", "c"), "ss_trigger_words"),
    "captions": (
        captions({"3_fox": {"zzfox": 20, "1girl": 19, "smile": 9, "fox (animal)": 18}}, {"3_fox": 20}),
        {},
        ("zzfox", "1girl", r"fox \(animal\)"),
        "tags of nearly all its captions",
    ),
    "two folders": (
        captions({"a": {"zz": 10, "red": 10}, "b": {"zz": 10, "blue": 10}}, {"a": 10, "b": 10}),
        {},
        ("zz",),
        "tags of nearly all its captions",
    ),
    "folders with nothing in common": (
        captions({"a": {"red": 10, "x": 2}, "b": {"blue": 10}}, {"a": 10, "b": 10}),
        {},
        ("red", "blue"),
        "tags of nearly all its captions",
    ),
    "one trigger, as some trainers write it": (
        captions({"1_zz": {"zz": 1}}),
        {},
        ("zz",),
        "tags of nearly all its captions",
    ),
    "Automatic1111": (
        {},
        {"json": '{"activation text": "zz, <lora:zz:0.8>, (hat:1.2)"}'},
        ("zz, (hat:1.2)",),
        "*.json",
    ),
    "Civitai Helper": ({}, {"civitai__info": '{"trainedWords": ["zz", "zz hat"]}'}, ("zz", "zz hat"), "*.civitai.info"),
    "LoRA Manager": (
        {},
        {"metadata__json": '{"civitai": {"trainedWords": ["zz"]}}'},
        ("zz",),
        "*.metadata.json",
    ),
    "rgthree": (
        {},
        {"safetensors__rgthree_info__json": '{"trainedWords": [{"word": "zz", "civitai": true}]}'},
        ("zz",),
        "*.rgthree-info.json",
    ),
    "text": ({}, {"txt": "\ufeffzz fox\n\nzz hat\n"}, ("zz fox", "zz hat"), "*.txt"),
    "people before programs before headers": (
        {"modelspec.trigger_phrase": "c"},
        {"json": '{"activation text": "a"}', "civitai__info": '{"trainedWords": ["b"]}'},
        ("a",),
        "*.json",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_words_are_found_where_they_are_written(lora, case):
    metadata, notes, words, source = SAID[case]
    found = about(lora(metadata, **notes))
    assert (found.words, found.words_from) == (words, source)
    assert (found.keys, found.rank) == (2, 4)


def test_a_prompt_gets_a_few_words_or_one_prompt(lora):
    many = about(lora(txt="\n".join(f"word{i}" for i in range(9))))
    assert many.for_prompt == ", ".join(f"word{i}" for i in range(MOST_IN_PROMPT))
    outfits = about(lora(txt="zz, red dress, hat\nzz, armour"))
    assert outfits.for_prompt == "zz, red dress, hat"


BASES = {
    "stable-diffusion-xl-v1-base/lora": "SDXL",
    "sdxl_base_v1-0": "SDXL",
    "SDXL 1.0": "SDXL",
    "Pony": "SDXL",
    "Illustrious": "SDXL",
    "Pony V7": "AuraFlow",
    "sd_v1": "SD 1.5",
    "SD 1.5": "SD 1.5",
    "sd_1.5": "SD 1.5",
    "stable-diffusion-v2-768-v": "SD 2",
    "stable-diffusion-3.5-large": "SD 3",
    "Flux.1 D": "FLUX.1",
    "flux-1-dev/lora": "FLUX.1",
    "flux2_klein_9b": "FLUX.2",
    "Flux.2 D": "FLUX.2",
    "ZImageTurbo": "Z-Image",
    "zimage:turbo": "Z-Image",
    "qwen_image": "Qwen-Image",
    "Wan Video 2.2 T2V-A14B": "Wan",
    "something new": "",
}


@pytest.mark.parametrize("words", BASES)
def test_base_models_are_understood(words):
    assert base_called(words) == BASES[words]


def test_base_of_a_model_is_its_configuration_s():
    assert base_of(tiny.tiny_unet().model) in ("SD 1.5", "SDXL", "") and base_of(tiny.world_flux().model) == "FLUX.1"


def test_base_is_named_by_notes_then_header_then_keys(lora):
    keys = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.zeros(4, 2048)}
    found = about(lora(tensors=keys))
    assert (found.base, found.base_from, found.means) == ("SDXL", "its keys", "SDXL")
    metadata = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "n/a"}
    found = about(lora(metadata, keys))
    assert (found.base, found.base_from) == ("sdxl_base_v1-0", "ss_base_model_version")
    found = about(lora(metadata, keys, json='{"sd version": "Unknown"}', civitai__info='{"baseModel": "Illustrious"}'))
    assert (found.base, found.base_from, found.means) == ("Illustrious", "*.civitai.info", "SDXL")


@pytest.mark.parametrize(
    "name, width, means",
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", 768, "SD 1.5"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", 2048, "SDXL"),
        ("lora_unet_single_blocks_37_linear1.lora_down.weight", 3072, "FLUX.1"),
        ("lora_unet_single_blocks_19_linear1.lora_down.weight", 3072, ""),  # FLUX.2 klein has as many
        ("transformer.single_transformer_blocks.30.attn.to_q.lora_A.weight", 3072, "FLUX.1"),
        ("transformer_blocks.3.img_mlp.net.0.proj.lora_A.weight", 3072, "Qwen-Image"),
        ("diffusion_model.layers.3.attention.to_q.lora_A.weight", 3840, "Z-Image"),
        ("diffusion_model.blocks.3.cross_attn.k.lora_A.weight", 5120, "Wan"),
        ("diffusion_model.double_blocks.1.img_attn.qkv.lora_A.weight", 3072, ""),
    ],
)
def test_keys_tell_the_base_only_where_nothing_else_has_them(lora, name, width, means):
    assert about(lora(tensors={name: torch.zeros(4, width)})).means == means


DEEP = "[" * 100_000
HUGE = "9" * 4000
HOSTILE_NOTES = {
    "no JSON": b"\xff\xfe{",
    "deep": DEEP.encode(),
    "a number": b"7",
    "a list": b'[{"trainedWords": ["x"]}]',
    "wrong types": b'{"trainedWords": {"a": 1}, "activation text": 7, "civitai": ["x"], "base_model": {"a": "SDXL"}}',
    "words of wrong types": b'{"trainedWords": [null, 7, {"word": 3}, ["x"], true]}',
    "controls": json.dumps({"trainedWords": ["\x1b[2Jx", "\ud800", "a\u202eb", "https://x.example/y"]}).encode(),
    "nothing": b"",
    "too large": b'{"trainedWords": ["x"]}' + b" " * MOST_OF_A_NOTE,
}


@pytest.mark.parametrize("ending", ["json", "metadata__json", "civitai__info", "safetensors__rgthree_info__json"])
@pytest.mark.parametrize("case", HOSTILE_NOTES)
def test_notes_that_are_none_say_nothing(lora, case, ending):
    found = about(lora({"modelspec.trigger_phrase": "own"}, **{ending: HOSTILE_NOTES[case]}))
    assert found.words == ("own",) and found.base == ""


HOSTILE_HEADERS = {
    "no table": {"ss_tag_frequency": "[1]"},
    "deep": {"ss_tag_frequency": DEEP, "ss_trigger_words": DEEP},
    "no numbers": {"ss_tag_frequency": '{"a": {"x": "9", "y": null, "z": [1]}, "b": 7}'},
    "numbers beyond numbers": {"ss_tag_frequency": f'{{"a": {{"x": {HUGE}, "y": NaN, "z": Infinity, "w": -5}}}}'},
    "counts beyond numbers": captions({"a": {"x": -3}}) | {"ss_dataset_dirs": f'{{"a": {{"img_count": -{HUGE}}}}}'},
    "controls": {"modelspec.trigger_phrase": "\x1b[2Jx", "modelspec.architecture": "a\x00b"},
}


@pytest.mark.parametrize("case", HOSTILE_HEADERS)
def test_headers_that_are_none_say_nothing(lora, case):
    found = about(lora(HOSTILE_HEADERS[case]))
    assert (found.words, found.base, found.for_prompt) == ((), "", "")


def test_what_is_said_is_short_and_can_be_shown(lora):
    long = ", ".join(f"tag{i}" for i in range(5000))
    found = about(
        lora(
            {"modelspec.architecture": "x" * 10_000},
            civitai__info=json.dumps({"trainedWords": [long, *(f"w\n\t{i}" for i in range(1000)), "y" * 10_000]}),
        )
    )
    assert len(found.words) == MOST_WORDS and all(0 < len(word) <= MOST_OF_A_WORD for word in found.words)
    assert found.words[1] == "w 0" and len(found.base) <= 100
    assert len(found.for_prompt) <= MOST_IN_PROMPT * (MOST_OF_A_WORD + 2)
    assert printable(found.for_prompt) == found.for_prompt and "\n" not in found.for_prompt


@pytest.mark.parametrize("head", [b"", b"\x01", (1 << 62).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"{" * 9])
def test_a_file_with_no_header_says_nothing(tmp_path, head):
    path = tmp_path / "x.safetensors"
    path.write_bytes(head)
    assert about(str(path)).words == () and about(str(tmp_path / "gone.safetensors")).keys == 0
    assert about(str(tmp_path / "x.pt")).words == ()


@pytest.mark.skipif(sys.platform == "win32", reason="no such things there")
def test_notes_that_are_no_files_are_not_waited_for(lora, tmp_path):
    path = lora()
    os.mkfifo(tmp_path / "my.lora.json")
    (tmp_path / "my.lora.txt").mkdir()
    start = time.monotonic()
    assert about(path).words == () and time.monotonic() - start < 5


NAMES = st.sampled_from(
    [
        "activation text",
        "trainedWords",
        "civitai",
        "baseModel",
        "sd version",
        "base_model",
        "word",
        "a",
        "ss",
        "img_count",
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
TEXTS = st.text(max_size=40) | ANY_JSON.map(json.dumps)
HEADERS = st.dictionaries(
    st.sampled_from(["ss_tag_frequency", "ss_dataset_dirs", "ss_trigger_words", *BASE_KEYS]),
    TEXTS.map(lambda text: text.encode("utf-8", "replace").decode()),
)


@settings(max_examples=150, deadline=None)
@given(note=ANY_JSON.map(lambda said: json.dumps(said).encode()) | st.binary(max_size=60), metadata=HEADERS)
def test_whatever_is_written_is_read_or_passed_over(note, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        save_file(TENSORS, path, metadata)
        path.with_suffix(".civitai.info").write_bytes(note)
        path.with_suffix(".txt").write_bytes(note)
        found = about(str(path))
    for text in (found.base, found.for_prompt, *found.words):
        assert printable(text) == text and "\n" not in text and len(text) <= MOST_IN_PROMPT * (MOST_OF_A_WORD + 2)
    assert len(found.words) <= MOST_WORDS and bool(found.words) is bool(found.words_from)
