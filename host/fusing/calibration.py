"""Calibrating SSR-Merge: one sampling step with each role's LoRAs alone, on a prompt of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...fusion.calibration import Calibrator
from ...fusion.layers import FusedLayer
from ...fusion.policies import Calibration, Solo, SSRMerge
from ..core import ConductorError, Progress, find_module
from .attach import attachment_of, set_policy


def calibrated(
    model: ModelPatcher, prompts: Mapping[str, Any], latent: Tensor, *, seed: int = 0, ridge: float = 1e-4
) -> SSRMerge:
    """SSR-Merge for the LoRAs on a model.

    As in the official code, each LoRA runs the first step of a one-step sampling from noise with its own prompt.

    Args:
        model: with LoRAs of both roles.
        prompts: by role the CONDITIONING of a prompt for that LoRA alone.
        latent: ``[batch, channels, ...]`` in the size to be sampled; only its shape is used.
        seed: of the noise.
        ridge: see :class:`SSRMerge`.

    Raises:
        ConductorError: the model lacks LoRAs of a role.
    """
    spec = attachment_of(model).spec
    if spec is None or not spec.has_both_roles:
        raise ConductorError(
            "model: ssr_merge is calibrated on a model with a subject and a style LoRA. Put KLLayerRouter after the "
            "LoRA loaders."
        )
    empty = torch.zeros_like(latent)
    noise = comfy.sample.prepare_noise(empty, seed)
    calibrator = Calibrator(spec.layers)
    progress = Progress(len(prompts))
    for role, prompt in prompts.items():
        progress.step()
        solo = set_policy(model, Solo(role=role))

        def observe(layer: FusedLayer, x: Tensor, role: str = role) -> None:
            calibrator.observe(role, layer, x)

        with _watched(solo.model, calibrator.layers, observe):
            comfy.sample.sample(
                solo, noise, 1, 1.0, "euler", "simple", prompt, prompt, empty, disable_pbar=True, seed=seed
            )
    return SSRMerge(ridge, Calibration(calibrator.moments(), spec.header["loras"]))


def calibrated_by_prompts(model: ModelPatcher, prompts: Mapping[str, Any], latent: Any) -> SSRMerge:
    """SSR-Merge from a node's inputs (see :func:`calibrated`).

    Args:
        model: with LoRAs of both roles.
        prompts: by role a CONDITIONING, or None where nothing is connected.
        latent: a LATENT, or None.

    Raises:
        ConductorError: something is not connected, or the model lacks LoRAs of a role.
    """
    given = {**{f"{role}_prompt": prompt for role, prompt in prompts.items()}, "latent": latent}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ConductorError(
            f"{' and '.join(missing)}: ssr_merge runs each LoRA alone for one step and needs a prompt for each and the "
            "size of the picture. Connect them, or choose another policy."
        )
    return calibrated(model, prompts, comfy.sample.fix_empty_latent_channels(model, latent["samples"]))


@contextmanager
def _watched(
    model: nn.Module, layers: Mapping[str, FusedLayer], observe: Callable[[FusedLayer, Tensor], None]
) -> Iterator[None]:
    """Show the inputs of the layers while the model runs."""
    handles = [
        find_module(model, name).register_forward_pre_hook(
            lambda module, inputs, layer=layer: observe(layer, inputs[0].detach())
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
