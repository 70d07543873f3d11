"""What guidance needs of the sampler's noisy side: gradients through the denoiser, and noising anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP

from ..vision import StandIns, checkpointed, normal_copy, overwriting_allowed


class Denoiser:
    """The model's prediction, noisy latent -> clean latent, CFG included, with gradients.

    model: the core BaseModel that predicts. predict: (x, sigma, model_options, seed) -> denoised, through core.
    Activations are recomputed in the backward pass, so that a full-size network fits, unless something changes the
    network for the time of a call only, as routed LoRAs do: the backward pass comes when that is over.
    """

    def __init__(
        self, model: Any, predict: Callable[..., torch.Tensor], sigma: torch.Tensor, model_options: Any, seed: Any
    ) -> None:
        self._network = model.diffusion_model
        self._stand_ins = StandIns(model)
        self._predict = predict
        self._arguments = (sigma, model_options, seed)
        self._recompute = not changes_network(model_options)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Call inside `gradients_enabled`. The backward pass may come later."""
        sigma, model_options, seed = self._arguments
        recompute = checkpointed(self._network, self._stand_ins) if self._recompute else nullcontext()
        with self._stand_ins.installed(), overwriting_allowed(), recompute:
            return self._predict(x, normal_copy(sigma), model_options, seed)

    def close(self) -> None:
        """Free what it holds."""
        self._stand_ins.close()


def changes_network(model_options: dict[str, Any]) -> bool:
    """Whether something changes the network for the time of a call, as routed LoRAs do."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return any(wrappers.get(kind) for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL))


def renoised(
    model: Any, x: torch.Tensor, x0: torch.Tensor, sigma: float, sigma_next: float, seed: tuple[int, int, int]
) -> torch.Tensor:
    """Time travel: an Euler step from x at sigma to sigma_next with the prediction x0, then noise back to sigma.

    seed: of the run, the step and the repetition; each sample draws its own noise from them.
    """
    following = x + (sigma_next / sigma - 1.0) * (x - x0)
    samples = []
    for index in range(len(x)):
        digest = hashlib.sha256(":".join(map(str, (*seed, index))).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        samples.append(torch.randn(x.shape[1:], generator=generator))
    noise = torch.stack(samples).to(x)
    shrink = (1.0 - sigma) / (1.0 - sigma_next) if is_flow(model) else 1.0
    return following * shrink + max(sigma**2 - (shrink * sigma_next) ** 2, 0.0) ** 0.5 * noise


def is_flow(model: Any) -> bool:
    """Whether x = (1 - sigma) x0 + sigma * noise, rather than x0 + sigma * noise."""
    return isinstance(model.model_sampling, comfy.model_sampling.CONST)
