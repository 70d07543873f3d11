"""Updates that one file alone makes of a weight: written as it has them, whatever kind of adapter they are.

As a product of two matrices most kinds would be of full rank, many times as large as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..loras import LoraOnModel

# By the name of core's class of adapter: the keys of its weights in their order, and the one that its strength can be
# put into; None where it does not scale with any, so that it must be 1.
LEAVES: dict[str, tuple[Sequence[str], str | None]] = {
    "LoHaAdapter": (
        ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "dora_scale"),
        "hada_w2_b",
    ),
    "LoKrAdapter": (
        (
            "lokr_w1",
            "lokr_w2",
            "alpha",
            "lokr_w1_a",
            "lokr_w1_b",
            "lokr_w2_a",
            "lokr_w2_b",
            "lokr_t2",
            "dora_scale",
        ),
        "lokr_w1",
    ),
    "LoRAAdapter": (("lora_up.weight", "lora_down.weight", "alpha", "lora_mid.weight", "dora_scale"), "lora_up.weight"),
    "GLoRAAdapter": (("a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha", "dora_scale"), None),
    "OFTAdapter": (("oft_blocks", "rescale", "alpha", "dora_scale"), None),
    "BOFTAdapter": (("oft_blocks", "rescale", "alpha", "dora_scale"), None),
}


def alone_of(parents: Sequence[LoraOnModel]) -> dict[str, dict[str, Tensor]]:
    """By weight, the tensors of the one update of it, by what follows the prefix; strength included.

    Left out are plain LoRAs, slices of a weight, weights that several files change, and what no tensor scales.
    """
    found: dict[str, list[tuple[LoraOnModel, Any]]] = {}
    for parent in parents:
        for target in (*parent.deltas, *parent.merged):
            found.setdefault(target.key, []).append((parent, target))
    kept = {}
    for key, changes in found.items():
        (parent, target), *others = changes
        if others or target.offset is not None or target.function is not None or target not in parent.core_patches:
            continue
        tensors = _tensors(parent.core_patches[target], parent.strength)
        if tensors is not None:
            kept[key] = tensors
    return kept


def _tensors(patch: Any, strength: float) -> dict[str, Tensor] | None:
    if isinstance(patch, tuple) and patch[0] == "diff" and len(patch[1]) == 1:
        return {"diff": patch[1][0].float() * strength}
    if not isinstance(patch, WeightAdapterBase) or type(patch).__name__ not in LEAVES:
        return None
    leaves, scaled = LEAVES[type(patch).__name__]
    weights = dict(zip(leaves, patch.weights, strict=False))
    if any(extra is not None for extra in patch.weights[len(leaves) :]):
        return None
    plain = weights.get("lora_mid.weight") is None and weights.get("dora_scale") is None
    if "lora_up.weight" in leaves and plain:
        return None
    if strength != 1:
        if scaled is None or weights.get("dora_scale") is not None:
            return None
        scaled = scaled if weights[scaled] is not None else f"{scaled}_a"
        weights[scaled] = weights[scaled].float() * strength
    return {
        leaf: value if isinstance(value, Tensor) else torch.tensor(float(value))
        for leaf, value in weights.items()
        if value is not None
    }
