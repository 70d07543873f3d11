"""Samplings that route nothing: why, and how the node that shows the map hears of it."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..maps import nothing_routed
from .spec import FusionSpec

KEY = "lora_conductor:unrouted"


def why_nothing(spec: FusionSpec | None, *, is_merged: bool) -> str:
    """Why a run of these LoRAs routes nothing, if it does: a word that the page has a sentence for.

    is_merged: whether the policy was carried out before sampling.
    """
    if spec is None:
        return "no_loras"
    if not spec.has_both_roles:
        return "one_role"
    if not spec.shared_layers:
        return "apart"
    return "merged" if is_merged else "undecided"


def announce(model: ModelPatcher, spec: FusionSpec | None, node: str | None) -> None:
    """Have samplings of the model, which fuse nothing, tell it to the page; in place of what was announced before."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    if node is None:
        return
    why, header = why_nothing(spec, is_merged=True), None if spec is None else spec.header

    def outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        nothing_routed(node, why, header)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
