"""What is put on top of a method: core's APG, and guidance by the model without its LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Any, Path, Path], Any]
"""(base ModelPatcher, subject LoRA file, style LoRA file) -> ModelPatcher to sample with."""


def with_apg(eta: float, norm: float, make: Maker) -> Maker:
    """A method under adaptive projected guidance (arXiv 2410.02416): ComfyUI's own node.

    Guidance counts once more there than CFG says: 1.5 is what 2.5 is without it.

    Args:
        eta: share of the part of guidance that is parallel to the picture; 1 leaves it.
        norm: what guidance is no longer than; 0 for any length.
    """

    def made(model: Any, subject: Path, style: Path) -> Any:
        from comfy_extras.nodes_apg import APG

        return APG.execute(make(model, subject, style), eta, norm, 0.0).result[0]

    return made


def with_base(scale: float, until: float, make: Maker) -> Maker:
    """A method guided by what the model says without LoRAs: ``x0_base + scale (x0 - x0_base)``, one pass more a step.

    It is autoguidance (arXiv 2406.02507) with the base as the worse model. At CFG 1 there is no negative pass that
    emphasis could leave the LoRAs out of; this is that pass.

    Args:
        until: share of the schedule after which nothing is done.
    """

    def made(model: Any, subject: Path, style: Path) -> Any:
        from comfy.samplers import calc_cond_batch

        fused = make(model, subject, style).clone()
        last = float(fused.get_model_object("model_sampling").percent_to_sigma(until))

        def guide(given: dict[str, Any]) -> Any:
            if float(given["sigma"][0]) <= last:
                return given["denoised"]
            bare = {"transformer_options": {}}  # and none of the wrappers that add LoRAs
            (base,) = calc_cond_batch(given["model"], [given["cond"]], given["input"], given["sigma"], bare)
            return base + scale * (given["denoised"] - base)

        fused.set_model_sampler_post_cfg_function(guide)
        return fused

    return made
