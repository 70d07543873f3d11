"""Corrections: how the gradient of the objective moves the predicted clean image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from .losses import SimilarityObjective

Decode = Callable[[torch.Tensor], torch.Tensor]


def rms(x: torch.Tensor) -> torch.Tensor:
    """Root mean square of each sample: [B, ...] -> [B]."""
    return x.flatten(1).square().mean(dim=1).sqrt()


@dataclass(frozen=True)
class CorrectionResult:
    """What a correction did; every field but `x0` has one entry per sample, [B].

    x0: the corrected prediction, shaped as the one given. similarities: each term, before the correction.
    gradient_rms, displacement_rms: of the gradient and of x0 - x0_given, in x0's units. skipped: samples that were left
    alone because their gradient was zero or not finite.
    """

    x0: torch.Tensor
    similarities: dict[str, torch.Tensor]
    gradient_rms: torch.Tensor
    displacement_rms: torch.Tensor
    skipped: torch.Tensor


class Correction(Protocol):
    """A strategy that turns a predicted clean latent into a corrected one."""

    def __call__(self, x0: torch.Tensor, decode: Decode, objective: SimilarityObjective) -> CorrectionResult: ...


def latent_gradient(
    x0: torch.Tensor, decode: Decode, objective: SimilarityObjective
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gradient of the objective at the predicted clean latent, fp32 or wider, and the similarities there.

    x0: [B, C, ...] latent. decode: latent -> image [B, 3, H, W] in [0, 1], differentiable. The chain is cut at the
    image: encoders first, then one vector-Jacobian product through the decoder, so that the decoder's and the encoders'
    activations need not all be alive at once.
    """
    leaf = x0.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        image = decode(leaf)
    image_gradient, similarities = objective.gradient(image)
    # Unit RMS on the way through the decoder: a half-precision decoder would lose raw gradients of 1e-6 to underflow.
    scale = rms(image_gradient).clamp_min(torch.finfo(image_gradient.dtype).tiny)
    shape = (-1,) + (1,) * (image_gradient.ndim - 1)
    cotangent = (image_gradient / scale.view(shape)).to(image)
    (gradient,) = torch.autograd.grad(image, leaf, cotangent)
    # At least fp32 for what follows, fp64 kept.
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient * scale.to(gradient).view((-1,) + (1,) * (gradient.ndim - 1)), similarities


@dataclass(frozen=True)
class X0Correction:
    """Gradient step at the predicted clean latent, not through the denoiser.

    d = -eta * RMS(x0) * g / RMS(g) per sample, with g the gradient of the objective at x0. Taking the denoiser's
    Jacobian as identity costs no backward pass through it and suits eps, v and flow models alike (MPGD, arXiv
    2311.16424; RB-Modulation, arXiv 2405.17401). Normalising makes one eta fit every model, resolution and loss scale.

    eta: RMS of the displacement as a fraction of RMS(x0). max_displacement: hard limit of that fraction.
    """

    eta: float
    max_displacement: float = 0.5

    def __call__(self, x0: torch.Tensor, decode: Decode, objective: SimilarityObjective) -> CorrectionResult:
        gradient, similarities = latent_gradient(x0, decode, objective)
        gradient_rms = rms(gradient)
        usable = torch.isfinite(gradient_rms) & (gradient_rms > 0)
        wide = x0.detach().to(gradient.dtype)
        step = min(self.eta, self.max_displacement) * rms(wide)
        factor = torch.where(usable, step / torch.where(usable, gradient_rms, 1.0), 0.0)
        shape = (-1,) + (1,) * (x0.ndim - 1)
        # Not gradient * 0 for unusable samples: NaN * 0 is NaN.
        direction = torch.where(usable.view(shape), gradient, 0.0)
        displacement = -factor.view(shape) * direction
        return CorrectionResult(
            x0=(wide + displacement).to(x0.dtype),
            similarities=similarities,
            gradient_rms=gradient_rms,
            displacement_rms=rms(displacement),
            skipped=~usable,
        )
