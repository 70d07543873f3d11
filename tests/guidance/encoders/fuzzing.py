"""Encoder files and folders made worse at random: built, or refused by a named error."""

from __future__ import annotations

import copy
import functools
import json
import math
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from lora_conductor.guidance.encoders import (
    METADATA_KEY,
    EncoderFileError,
    TokenizerFolders,
    build_from_file,
    build_text_from_file,
)
from lora_conductor.host.core import ConductorError
from lora_conductor.host.vision import load_metric_encoder

REFUSALS = (EncoderFileError, ConductorError, ImportError)
VOCABULARY = 320
OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": VOCABULARY, "width": 8, "heads": 2, "layers": 1}
    | {"hf_tokenizer_name": "some/name", "tokenizer_kwargs": {"clean": "lower"}},
    "quick_gelu": True,
}
TIMM = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 16, 513, 20_000, 2**22, 2**31, 2**63, 10**400, 0.5, 1e30, math.nan, math.inf),
    *("", "x", "gelu", "avg", "hf-hub:some/model", "local-dir:/", "some/model", "../../x", "\ud800", "\0", "a" * 9999),
    *([], [1], [[1]], [2, 2], [1, 1, 1, 1], ["evil.Evil", None], {}, {"": None}, {"trust_remote_code": True}),
)
NAMES = (
    *("auto_map", "trust_remote_code", "checkpoint_path", "pretrained_cfg", "features_only", "timm_model_name"),
    *("backbone", "use_pretrained_backbone", "_attn_implementation", "quantization_config", "tokenizer_class"),
    *("vocab_file", "hf_model_name", "norm_layer", "global_pool", "pool_type", "hidden_act", "image_size", "layers"),
)


def json_made_worse(good: Any, random: Random) -> Any:
    """One to three of its values replaced, left out, renamed or added to."""
    worse = copy.deepcopy(good)
    for _ in range(random.randint(1, 3)):
        holders = [part for part in _parts(worse) if isinstance(part, (dict, list)) and part]
        if not holders:
            return worse
        holder = random.choice(holders)
        key = random.choice(list(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
        match random.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[random.choice(NAMES)] = copy.deepcopy(random.choice(VALUES))
            case 2 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
                holder[key] = holder[key] * random.choice((0, -1, 2, 1000)) + random.choice((0, 1))
            case _:
                holder[key] = copy.deepcopy(random.choice(VALUES))
    return worse


def _parts(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(part for item in inner for part in _parts(item))]


def bytes_made_worse(good: bytes, random: Random) -> bytes:
    """One to four changes, most of them in the header, or the file cut short."""
    worse = bytearray(good)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(worse) if random.random() < 0.2 else min(len(worse), 1500) or 1)
        match random.randrange(4):
            case 0 if start < len(worse):
                worse[start] ^= 1 << random.randrange(8)
            case 1:
                del worse[start : start + random.choice((1, 2, 64))]
            case 2:
                worse[start:start] = random.choice((b'"', b"[", b"{", b"9", b"0", b"\0", b"NaN", b"\\ud800", b"\xff"))
            case _:
                worse[start : start + 2] = random.randbytes(2)
    return bytes(worse[: random.randrange(len(worse) + 1)] if random.random() < 0.1 else worse)


@functools.cache
def _good() -> dict[str, Any]:
    """Tiny networks' weights, and what describes them."""
    import open_clip
    import timm
    import tokenizers
    import transformers

    clip = open_clip.CLIP(**OPEN_CLIP)
    backbone = {f"backbone.{key}": value for key, value in clip.visual.state_dict().items() if key != "proj"}
    heads = {f"last_layer_{name}": torch.zeros(16, 8) for name in ("style", "content")}
    half = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    picture = {**half, "image_size": 16, "patch_size": 8}
    text = {**half, "vocab_size": VOCABULARY, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}
    configs = [
        transformers.CLIPConfig(vision_config=picture, text_config=text, projection_dim=8),
        transformers.SiglipConfig(vision_config=picture, text_config=text),
        transformers.Dinov2Config(**picture, mlp_ratio=1),
    ]
    models = [transformers.CLIPModel, transformers.SiglipModel, transformers.Dinov2Model]
    words = {"<unk>": 0, "</s>": 1, "<pad>": 2, "a": 3, "fox": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sizes = {"size": {"shortest_edge": 16}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return {
        "described": {
            "open_clip": (clip.state_dict(), OPEN_CLIP),
            "csd": (backbone | heads, {**OPEN_CLIP, "text_cfg": {}}),
            "timm": (timm.create_model(TIMM["name"], num_classes=0, **TIMM["kwargs"]).state_dict(), TIMM),
        },
        "transformers": [
            (model(config).state_dict(), {**json.loads(config.to_json_string(use_diff=False)), "preprocessor": sizes})
            for model, config in zip(models, configs, strict=True)
        ],
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8}
        | {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"},
        "config.json": {"model_type": "t5", "d_model": 8},
    }


def good_description(library: str) -> dict[str, Any]:
    """A file's description of itself, that is right."""
    config = _good()["described"][library][1]
    described = {"library": library, "role": "clip", "config": config, "image_size": 16}
    return described | {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def _folder(random: Random, folder: Path, worse: bool) -> TokenizerFolders:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        good = _good()[name]
        if name != "config.json" or random.random() < 0.3:
            worst = json_made_worse(good, random) if worse and random.random() < 0.5 else good
            (folder / name).write_text(json.dumps(worst))
    (folder / "evil.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\nclass Evil: pass\n")
    return TokenizerFolders(folder)


def described_case(random: Random, folder: Path, worse: bool = True) -> None:
    """A file that describes itself."""
    library = random.choice(list(_good()["described"]))
    description = good_description(library)
    if worse and random.random() < 0.9:
        description = json_made_worse(description, random)
    metadata = {METADATA_KEY: json.dumps(description)}
    weights = _good()["described"][library][0]
    features = random.choice(("embedding", "gram"))
    encoder = build_from_file(weights, metadata, file_name="file", features=features)
    encoder.embed(torch.zeros(1, 3, 20, 16))
    if encoder.reads_text:
        build_text_from_file(weights, metadata, file_name="file", folders=_folder(random, folder, worse)).embed("a fox")


def transformers_case(random: Random, folder: Path, worse: bool = True) -> None:
    """A model's folder."""
    weights, config = random.choice(_good()["transformers"])
    if worse and random.random() < 0.9:
        config = json_made_worse(config, random)
    encoder = build_from_file(weights, None, config=config, file_name="file")
    encoder.embed(torch.zeros(1, 3, 20, 16))
    if encoder.reads_text:
        folders = _folder(random, folder, worse)
        build_text_from_file(weights, None, config=config, file_name="file", folders=folders).embed("a fox")


def bytes_case(random: Random, folder: Path, worse: bool = True) -> None:
    """A file as bytes, loaded as the node loads it, or the JSON beside it."""
    weights = _good()["described"]["timm"][0]
    data = save(dict(weights), metadata={METADATA_KEY: json.dumps(good_description("timm"))})
    (folder / "file.safetensors").write_bytes(bytes_made_worse(data, random) if worse else data)
    if worse and random.random() < 0.3:
        config = json.dumps(_good()["transformers"][0][1]).encode()
        (folder / "config.json").write_bytes(bytes_made_worse(config, random))
    load_metric_encoder(str(folder / "file.safetensors"))


KINDS = (described_case, transformers_case, bytes_case)


def case(seed: int) -> None:
    """One input, the same for the same seed. Raises what is a fault: anything but a named refusal."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as name:
        try:
            random.choice(KINDS)(random, Path(name))
        except REFUSALS as error:
            assert str(error).isprintable() and len(str(error)) <= 2000, repr(str(error))
        assert not (Path(name) / "mark").exists()
