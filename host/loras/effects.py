"""What a patch of core's makes of the weight that it finds: added to it, or computed from it; and of what shape."""

from __future__ import annotations

from typing import Any

from comfy.weight_adapter import WeightAdapterBase

from .kinds import kind_of


def depends_on_weight(patch: Any) -> bool:
    """Whether a patch does something else where other patches stand before it; kinds that are not known do."""
    if isinstance(patch, WeightAdapterBase):
        kind = kind_of(patch)
        return kind is None or not kind.additive or patch.weights[kind.magnitude] is not None
    if isinstance(patch, list):
        return False  # the difference of another model, patched on its own
    return len(patch) == 2 and patch[0] not in ("diff", "model_as_lora")


def new_shape(patch: Any) -> tuple[int, ...] | None:
    """The shape that a patch makes the weight of where it is smaller; None for patches that keep it."""
    if isinstance(patch, WeightAdapterBase):
        reshape = patch.weights[5] if type(patch).__name__ == "LoRAAdapter" else None
        return None if reshape is None else tuple(reshape)
    if isinstance(patch, list) or patch[0] == "set":
        return None
    values = patch[1] if len(patch) == 2 else patch
    padded = len(values) > 1 and values[1].get("pad_weight", False)
    return tuple(values[0].shape) if padded else None
