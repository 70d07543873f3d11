"""Encoder files and their folders, as `MetricEncoderLoader` reads them: open_clip, timm, transformers and CSD."""

from __future__ import annotations

import functools
import io
import json
import math
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from lora_conductor.guidance.encoders import FEATURES, METADATA_KEY
from lora_conductor.host.core import ConductorError
from lora_conductor.host.vision import load_metric_encoder

from .. import mutations
from ..cases import Parser
from ..guard import GUARD
from . import setting

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
WEIGHTS = ("open_clip", "csd", "timm", "transformers0", "transformers1", "transformers2")
FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
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


@functools.cache
def _file(weights: str) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a file that says nothing of itself."""
    tables = {name: table for name, (table, _) in _good()["described"].items()}
    tables |= {f"transformers{number}": table for number, (table, _) in enumerate(_good()["transformers"])}
    return mutations.parts_of(save({key: value.contiguous() for key, value in tables[weights].items()}))


def _described(weights: str, description: Any) -> bytes:
    header, tensors = _file(weights)
    return mutations.file_of({"__metadata__": {METADATA_KEY: json.dumps(description)}, **header}, tensors)


def _folders() -> list[bytes]:
    cases: list[dict[str, Any]] = [
        {"weights": library, "description": good_description(library)} for library in _good()["described"]
    ]
    cases.append({"weights": "timm", "description": good_description("timm"), "features": "gram"})
    cases.append({"weights": "csd", "description": good_description("csd"), "features": "content head"})
    for number, (_, config) in enumerate(_good()["transformers"]):
        preprocessor = config["preprocessor"]
        files = {"config.json": {**config, "preprocessor": None}, "preprocessor_config.json": preprocessor}
        cases.append({"weights": f"transformers{number}", "files": files})
    return [json.dumps({**case, "files": {**_tokenizer(), **case.get("files", {})}}).encode() for case in cases]


def _tokenizer() -> dict[str, Any]:
    return {name: _good()[name] for name in ("tokenizer.json", "tokenizer_config.json")}


def _read_folder(data: bytes) -> None:
    case = json.loads(data)
    case = case if isinstance(case, dict) else {}
    weights = case.get("weights") if case.get("weights") in WEIGHTS else "timm"
    file = _described(weights, case["description"]) if "description" in case else mutations.file_of(*_file(weights))
    files = case.get("files") if isinstance(case.get("files"), dict) else {}
    beside = {name: json.dumps(files[name]).encode() for name in FILES if name in files}
    features = case.get("features") if case.get("features") in FEATURES else FEATURES[0]
    _load({"model.safetensors": file, **beside}, features)


def _load(files: dict[str, bytes], features: str = FEATURES[0]) -> None:
    """The first of the files, with the others and some code beside it."""
    name = next(iter(files))
    with setting.folder_of(setting.ENCODERS / "fuzz") as folder:
        evil = f"open({str(setting.OUTPUT / 'mark')!r}, 'w').close()\nclass Evil: pass\n"
        for other, content in {**files, "evil.py": evil.encode()}.items():
            setting.put(folder / other, content)
        try:
            encoder = load_metric_encoder(str(folder / name), features=features)
            found = encoder.encoder.embed(torch.zeros(1, 3, 20, 16))
            assert found.ndim == 2 and len(found) == 1
            if encoder.prompts is not None:
                encoder.prompts.embed("a fox")
        finally:
            with GUARD.resting():
                assert not (setting.OUTPUT / "mark").exists()


def _files() -> list[bytes]:
    return [_described(library, good_description(library)) for library in ("open_clip", "timm")]


def _csds() -> list[bytes]:
    """As it is published, which is with a larger backbone than this, and described."""
    table = _good()["described"]["csd"][0]
    published = io.BytesIO()
    torch.save({"model_state_dict": {f"module.{key}": value for key, value in table.items()}, "epoch": 1}, published)
    return [_described("csd", good_description("csd")), published.getvalue()]


def _read_file(data: bytes) -> None:
    beside = {name: json.dumps(content).encode() for name, content in _tokenizer().items()}
    _load({"model.pth" if data[:2] == b"PK" else "model.safetensors": data, **beside})


def _read_csd(data: bytes) -> None:
    try:
        _read_file(data)
    except ConductorError as error:
        if "CSD's backbone" not in str(error):
            raise


def _tensors(data: bytes, random: Random) -> bytes:
    return (mutations.zip_of if data[:2] == b"PK" else mutations.safetensors_of)(data, random)


def _header(data: bytes, random: Random) -> bytes:
    return (mutations.zip_of if data[:2] == b"PK" else _description)(data, random)


def _description(data: bytes, random: Random) -> bytes:
    """What a file says of itself."""
    header, tensors = mutations.parts_of(data)
    said = header["__metadata__"][METADATA_KEY].encode()
    said = (_json if random.random() < 0.7 else mutations.bytes_of)(said, random)
    return mutations.file_of({**header, "__metadata__": {METADATA_KEY: said.decode("utf-8", "replace")}}, tensors)


_json = mutations.json_with(VALUES, NAMES)
_bytes = mutations.bytes_with(mutations.TOKENS, 1500)
REFUSALS = (ConductorError,)
FOLDERS = Parser(_folders, _read_folder, REFUSALS, (_json,), quick=150)
FILES_ALONE = Parser(_files, _read_file, REFUSALS, (_header, _tensors, _bytes), quick=150)
CSDS = Parser(_csds, _read_csd, REFUSALS, (_header, _tensors, _bytes), quick=150)
