"""What core merges beside the routing (norms, biases, replaced weights), in the keys core reads it from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...fusion.baking import Factors
from ..loras import Entry, Target
from .file import BakedTensors


def add_merged(
    baked: BakedTensors, merged: Iterable[tuple[float, Entry]], key_map: dict[str, Any], written: set[str]
) -> None:
    """Write patches that core merges, those of several files for one weight added up.

    Args:
        baked: the file in the making; what cannot be written is named in it.
        merged: strength and entry of each patch.
        key_map: core's map of key prefixes to weights.
        written: weights that have a fused delta in the file.
    """
    by_target: dict[Target, list[tuple[float, Entry]]] = {}
    for strength, entry in merged:
        by_target.setdefault(entry.target, []).append((strength, entry))
    for target, parts in by_target.items():
        reason = _add(baked, target, parts, key_map, written)
        if reason is not None:
            baked.left_out[str(target)] = reason


def _add(
    baked: BakedTensors,
    target: Target,
    parts: Sequence[tuple[float, Entry]],
    key_map: dict[str, Any],
    written: set[str],
) -> str | None:
    """Write one target, or say why it cannot be written."""
    prefix = parts[0][1].prefix
    patches = [(strength, entry.patch) for strength, entry in parts]
    if target.key in written and target.function is None:
        # Core reads one patch a weight from a file.
        return "the same weight has a fused delta in the file"
    factors = [_factors(strength, patch) for strength, patch in patches]
    if all(pair is not None for pair in factors):
        pairs = [pair for pair in factors if pair is not None]
        baked.add_delta(prefix, (torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs])))
        return None
    leaf = _difference_leaf(prefix, target, key_map)
    differences = [_value(patch, "diff") for _, patch in patches]
    if leaf is not None and all(value is not None for value in differences):
        total = sum(s * d.float() for (s, _), d in zip(patches, differences, strict=True) if d is not None)
        assert isinstance(total, Tensor)
        baked.add(f"{prefix}.{leaf}", total)
        return None
    replacement = _value(patches[0][1], "set")
    if len(patches) == 1 and replacement is not None and leaf == "diff":
        baked.add(f"{prefix}.set_weight", replacement)
        return None
    kinds = sorted({getattr(patch, "name", None) or patch[0] for _, patch in patches})
    return f"there is no key for {' and '.join(map(str, kinds))} on such a weight"


def _factors(strength: float, patch: Any) -> Factors | None:
    """A plain LoRA's factors, its strength and scale in the up-projection."""
    if not isinstance(patch, LoRAAdapter) or any(extra is not None for extra in patch.weights[3:]):
        return None
    up, down, alpha = patch.weights[:3]
    scale = strength * (1.0 if alpha is None else alpha / down.shape[0])
    return up.flatten(1).float() * scale, down.flatten(1).float()


def _value(patch: Any, kind: str) -> Tensor | None:
    """The tensor of a ``(kind, (tensor,))`` patch."""
    if isinstance(patch, tuple) and len(patch) == 2 and patch[0] == kind and len(patch[1]) == 1:
        return patch[1][0]
    return None


def _difference_leaf(prefix: str, target: Target, key_map: dict[str, Any]) -> str | None:
    """What a difference of the target is called under a prefix that answers to its weight."""
    named = key_map[prefix]
    if named == target.core_key:
        return "diff"
    bias = isinstance(named, str) and target.core_key == f"{named.removesuffix('.weight')}.bias"
    return "diff_b" if bias else None
