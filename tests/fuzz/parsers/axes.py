"""The axes of `ComparePolicies`, up to where it would sample: two settings, and the lists of their values."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import torch

from lora_conductor.host.comparing import grid
from lora_conductor.host.core import ConductorError
from lora_conductor.nodes.compare import ComparePolicies, comparable

from .. import mutations
from ..cases import Parser
from . import setting

USUAL: dict[str, Any] = {
    "policies": "sum, kl_soft, recommended",
    "seed": 7,
    "seeds": 2,
    "rows": "policy",
    "row_values": "",
    "columns": "seed",
    "column_values": "",
}


class _Sampled(BaseException):
    """Everything was read: here it would sample. No cell's error, which would be kept in its place."""


def _seeds() -> list[bytes]:
    sides = [("policy", "", "seed", ""), ("cfg", "1, 2.5\n4", "seed", "1,2"), ("policy", "", "temperature", "0.1, 1")]
    sides += [("sampler_name", "euler", "granularity", "layer, head"), ("denoise", "0.5, 1", "policy", "")]
    named = ("rows", "row_values", "columns", "column_values")
    return [json.dumps({**USUAL, **dict(zip(named, side, strict=True))}).encode() for side in sides]


def _read(data: bytes) -> None:
    inputs = json.loads(data)
    if not isinstance(inputs, dict):
        return
    # Of the node itself core knows the types; what is linked to a menu may be anything.
    texts = {name: str(inputs.get(name, "")) for name in ("policies", "row_values", "column_values")}
    menus = {name: inputs.get(name, USUAL[name]) for name in ("rows", "columns")}
    numbers = {"seed": _whole(inputs.get("seed"), 2**64 - 1, 0), "seeds": _whole(inputs.get("seeds"), 64, 1)}
    rest: dict[str, Any] = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    latent = {"samples": torch.zeros(1, 4, 4, 4)}
    with mock.patch.object(grid, "sampled", side_effect=_Sampled):
        try:
            ComparePolicies.execute(
                setting.styled(), None, [], [], latent_image=latent, **texts, **numbers, **menus, **rest
            )
        except _Sampled:
            return
    raise AssertionError("nothing was compared")


def _whole(value: Any, most: int, least: int) -> int:
    """As core lets through."""
    return min(most, max(least, value)) if isinstance(value, int) else least


WORDS = (
    *comparable(),
    "1, 2, 3",
    "sum",
    "nan",
    "inf",
    "1e999",
    "-1",
    "0x10",
    "1_0",
    "\u0661\u0662",
    "9" * 5000,
    "true, false",
    ", ,\n,",
)
WORDS += (",".join(map(str, range(5000))), "sum,sum ,SUM", "1\x00", "\u2028".join("12"), "euler, heun")
AXES = Parser(_seeds, _read, (ConductorError,), (mutations.json_with(WORDS),))
