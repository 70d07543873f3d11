"""What core merges beside the routing (norms, biases, replaced weights), in the keys core reads it from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...fusion.baking import Factors
from ..loras import Entry, Target
from .file import BakedTensors
from .names import Naming

Merged = tuple[float, Entry]
Part = tuple[int, int, Factors | Tensor]


def low_rank_parts(
    merged: Iterable[Merged], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, list[Part]], list[Merged]]:
    """What of it is low-rank updates of rows: by weight, first and last row and factors; and the rest.

    Core merges those whose rows the model has in another order than the file. Here they are put into the model's.
    """
    parts: dict[str, list[Part]] = {}
    rest: list[Merged] = []
    for strength, entry in merged:
        target, factors = entry.target, _factors(strength, entry.patch)
        shape = shapes.get(target.key, ())
        if factors is None or len(shape) < 2 or (target.offset is not None and target.offset[0] != 0):
            rest.append((strength, entry))
            continue
        up, down = factors
        start = 0 if target.offset is None else target.offset[1]
        if target.function is not None:
            up = target.function(up)
        down = down.reshape(down.shape[0], *shape[1:])
        parts.setdefault(target.key, []).append((start, start + up.shape[0], (up, down)))
    return parts, rest


def add_merged(baked: BakedTensors, merged: Iterable[Merged], naming: Naming, written: set[str]) -> None:
    """Write patches that core merges, those of several files for one weight added up.

    Args:
        baked: the file in the making; what cannot be written is named in it.
        merged: strength and entry of each patch, without those of :func:`low_rank_parts`.
        naming: of the file.
        written: weights that have a low-rank update in the file.
    """
    by_target: dict[Target, list[Merged]] = {}
    for strength, entry in merged:
        by_target.setdefault(entry.target, []).append((strength, entry))
    for target, parts in by_target.items():
        reason = _add(baked, target, parts, naming, written)
        if reason is not None:
            baked.left_out[str(target)] = reason


def _add(baked: BakedTensors, target: Target, parts: Sequence[Merged], naming: Naming, written: set[str]) -> str | None:
    """Write one target, or say why it cannot be written."""
    patches = [(strength, entry.patch) for strength, entry in parts]
    if target.key in written:
        # Core reads one patch a weight from a file.
        return "the same weight has a fused delta in the file"
    weight = Target(f"{target.key.removesuffix('.bias')}.weight") if target.key.endswith(".bias") else target
    own = parts[0][1].prefix
    prefix = naming.prefix_of(weight) or own
    leaf = "diff" if weight == target else "diff_b"
    differences = [_value(patch, "diff") for _, patch in patches]
    plain = target.offset is None and target.function is None
    if plain and all(value is not None for value in differences):
        total = sum(s * d.float() for (s, _), d in zip(patches, differences, strict=True) if d is not None)
        assert isinstance(total, Tensor)
        baked.add(f"{prefix}.{leaf}", total)
        return None
    replacement = _value(patches[0][1], "set")
    if plain and len(patches) == 1 and replacement is not None and leaf == "diff":
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
