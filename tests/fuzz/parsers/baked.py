"""Baked files: what is written into their headers, and what is read of their parents' again."""

from __future__ import annotations

import functools
import json
from typing import Any

import safetensors
from comfy.model_patcher import ModelPatcher

from lora_conductor.fusion.policies import POLICIES
from lora_conductor.host.baking import BakeSettings, bake_to_file
from lora_conductor.host.core import ConductorError, Origin, printable
from lora_conductor.host.fusing import load_loras, set_policy
from lora_conductor.host.loras import LoraChoice, read_lora

from .. import mutations
from ..cases import Parser
from . import setting

PARENT, SAVED = "fuzz_parent.safetensors", "fuzz_baked"
FAMILY = {"modelspec.architecture": "stable-diffusion-v1", "ss_base_model_version": "sd_v1"}


@functools.cache
def _fused() -> ModelPatcher:
    """Two LoRAs, merged before sampling."""
    base = setting.styled()
    setting.put(setting.LORAS / PARENT, (setting.LORAS / setting.SUBJECT).read_bytes())
    model, _, _ = load_loras(base, None, [LoraChoice(PARENT, "subject", 1.0, 1.0)])
    return set_policy(model, POLICIES["sum"]())


def _bake(prompt: Any = None, extra: Any = None) -> None:
    settings = BakeSettings(rank=1, origin=Origin(prompt or {}, "1"))
    with setting.folder_of(setting.OUTPUT / SAVED):
        file, report = bake_to_file(_fused(), None, None, settings, f"{SAVED}/x", prompt, extra)
        setting.printed(printable(report))
        with safetensors.safe_open(file.path, "pt") as opened:
            header = opened.metadata()
        own = json.loads(header["lora_conductor"])
        assert [parent["name"] for parent in own["parents"]] == [setting.STYLE, PARENT]
        setting.printed(json.dumps(own, ensure_ascii=False), *header.values())
        assert read_lora("baked", str(file.path)).tensors


def _parents() -> list[bytes]:
    _fused()
    headers = [None, FAMILY, {**FAMILY, "ss_tag_frequency": "{}"}]
    files = []
    for header in headers:
        found, tensors = mutations.parts_of((setting.LORAS / setting.SUBJECT).read_bytes())
        files.append(mutations.file_of(found if header is None else {"__metadata__": header, **found}, tensors))
    return files


def _read_parent(data: bytes) -> None:
    """A parent that was replaced since it was loaded."""
    setting.put(setting.LORAS / PARENT, data)
    _bake()


def _workflows() -> list[bytes]:
    prompt = {"1": {"class_type": "BakeFusedLoRA", "inputs": {"model": ["2", 0], "latent": ["3", 0]}}}
    workflow = {"workflow": {"id": "a-b", "nodes": [{"id": 1, "type": "BakeFusedLoRA"}], "links": []}}
    both = [{"prompt": prompt, "extra": extra} for extra in (workflow, {}, None, {**workflow, "note": "x"})]
    return [json.dumps(case).encode() for case in both]


def _read_workflow(data: bytes) -> None:
    """What the page sends along, into the header."""
    setting.put(setting.LORAS / PARENT, _parents()[1])
    case = json.loads(data)
    case = case if isinstance(case, dict) else {}
    # Core has looked through the prompt before a node runs; what is beside it is handed on as it came.
    prompt = case.get("prompt")
    _bake(prompt if isinstance(prompt, dict) else None, case.get("extra"))


_metadata = mutations.header_of(
    mutations.json_with(({"__metadata__": []}, {"modelspec.architecture": 1}), (*FAMILY, "__metadata__"))
)
_header = mutations.bytes_with((*mutations.TOKENS, b"__metadata__", b'"modelspec.architecture":1,'), 600)
PARENTS = Parser(_parents, _read_parent, (ConductorError,), (_metadata, _header, mutations.safetensors_of))
HEADERS = Parser(
    _workflows, _read_workflow, (ConductorError,), (mutations.json_with(("lora_conductor", "prompt", "__metadata__")),)
)
