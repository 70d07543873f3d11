"""What is said of a LoRA file: its own header, and notes that other programs left beside it. Never an error."""

from __future__ import annotations

import functools
import json

from lora_conductor.host.core import printable
from lora_conductor.host.loras.about import MOST_IN_PROMPT, MOST_OF_A_WORD, MOST_WORDS, about, together
from lora_conductor.host.loras.shown import shown

from .. import mutations
from ..cases import Parser
from . import setting

FOLDER, FILE = "fuzz_told", "x.safetensors"
ENDINGS = (".json", ".rgthree-info.json", ".metadata.json", ".civitai.info", ".txt")
TAGS = {"10_cat": {"my cat": 20, "sitting": 19, "a (b)": 3}, "5_more": {"my cat": 7}}
HEADER = {
    "ss_tag_frequency": json.dumps(TAGS),
    "ss_dataset_dirs": json.dumps({"10_cat": {"img_count": 20}, "5_more": {"img_count": 7}}),
    "ss_base_model_version": "sdxl_base_v1-0",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.trigger_phrase": "",
}
NAMES = ("activation text", "sd version", "trainedWords", "civitai", "base_model", "baseModel", "trigger_words", "word")


def _use(lora: bytes, note: bytes | None) -> None:
    with setting.folder_of(setting.LORAS / FOLDER) as folder:
        setting.put(folder / FILE, lora)
        if note is not None:
            setting.put(folder / f"x{ENDINGS[len(note) % len(ENDINGS)]}", note)
        said, page = about(str(folder / FILE)), shown(f"{FOLDER}/{FILE}")
    assert page is not None
    words = together([said.for_prompt, said.for_prompt])
    setting.printed(json.dumps(page, allow_nan=False), words, said.means)
    assert all(printable(part) == part for part in (words, said.base, *said.words))
    assert len(said.words) <= MOST_WORDS and len(said.base) <= 100
    assert len(words) <= MOST_IN_PROMPT * (MOST_OF_A_WORD + 2)


def _headers() -> list[bytes]:
    setting.styled()
    shapes, tensors = mutations.parts_of((setting.LORAS / setting.SUBJECT).read_bytes())
    phrase = {"modelspec.trigger_phrase": "my cat, sitting"}
    headers: list[dict[str, str]] = [HEADER, {**HEADER, **phrase}, {"ss_trigger_words": '["a", "b c"]'}, {}]
    return [mutations.file_of({"__metadata__": header, **shapes}, tensors) for header in headers]


def _read_header(data: bytes) -> None:
    _use(data, None)


@functools.cache
def _lora() -> bytes:
    return _headers()[-1]


def _notes() -> list[bytes]:
    notes = [
        {"activation text": "my cat, <lora:x:1> sitting", "sd version": "SD1", "preferred weight": 0.8},
        {"trainedWords": ["my cat", "sitting"], "baseModel": "Illustrious", "model": {"name": "x"}},
        {"civitai": {"trainedWords": ["a, b"], "baseModel": "SDXL 1.0"}, "base_model": "SDXL 1.0", "tags": []},
        {"trainedWords": [{"word": "my cat"}, {"word": "x"}]},
    ]
    return [json.dumps(note).encode() for note in (*notes, "my cat, sitting in a garden")]


def _read_note(data: bytes) -> None:
    _use(_lora(), data)


_values = (*NAMES, TAGS, "\ud800\x1b[2J", "9" * 5000, 1e308, ["\u202e"] * 50, "a" * 100_000, "<lora:" * 100)
_worse_header = mutations.header_of(mutations.json_with((*_values, json.dumps(TAGS)), tuple(HEADER)))
ABOUT = Parser(_headers, _read_header, (), (_worse_header, mutations.safetensors_of))
NOTES = Parser(_notes, _read_note, (), (mutations.json_with(_values, NAMES), mutations.bytes_of))
