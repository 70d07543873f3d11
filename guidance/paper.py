"""The paper's refinement: the gradient of R with respect to the noisy latent, through the denoiser (arXiv 2602.15539).

    x_{t-1} = x_{t-1}^ori - m * grad_{x_t} R(x0hat(x_t))        (20)

in the coordinates of the sampler: k-diffusion's sigma space, x = x0 + sigma * noise, or x = (1 - sigma) x0 + sigma *
noise for flow models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .corrections import CorrectionResult, Decode, latent_gradient, per_sample, rms
from .losses import SimilarityObjective

Denoise = Callable[[torch.Tensor], torch.Tensor]


def noisy_gradient(
    x: torch.Tensor, denoise: Denoise, decode: Decode, objective: SimilarityObjective
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Gradient of R with respect to the noisy latent x [B, C, ...], fp32 or wider; the prediction; the similarities.

    denoise: x -> predicted clean latent, differentiable.
    """
    leaf = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        x0 = denoise(leaf)
    at_x0, similarities = latent_gradient(x0, decode, objective)
    # Unit RMS through the denoiser, which may be half precision, as through the decoder.
    scale = rms(at_x0)
    usable = torch.isfinite(scale) & (scale > 0)
    divisor = per_sample(torch.where(usable, scale, 1.0), at_x0)
    cotangent = torch.where(per_sample(usable, at_x0), at_x0 / divisor, 0.0)
    (gradient,) = torch.autograd.grad(x0, leaf, cotangent.to(x0))
    return gradient.to(at_x0) * per_sample(scale, at_x0), x0.detach(), similarities


@dataclass(frozen=True)
class PaperCorrection:
    """Eq. 20 as an edit of the predicted clean latent.

    An Euler step is x_next = x + (sigma_next / sigma - 1)(x - x0), for sigma space and flow alike, so that moving x0
    by -m * g / (1 - sigma_next / sigma) moves x_next by exactly -m * g. Other samplers get the same edit.

    m: the paper's step size. vp: x_t of Eq. 20 is taken in variance-preserving coordinates, x / sqrt(1 + sigma^2),
    which multiplies the step by sqrt((1 + sigma^2)(1 + sigma_next^2)); for eps and v models only. max_displacement:
    limit of the move of x_next as a fraction of RMS(x0); None as in the paper.
    """

    m: float = 10.0
    vp: bool = False
    max_displacement: float | None = None

    def __call__(
        self,
        x: torch.Tensor,
        denoise: Denoise,
        decode: Decode,
        objective: SimilarityObjective,
        sigma: float,
        sigma_next: float,
    ) -> CorrectionResult:
        """x: noisy latent [B, C, ...] at sigma, whose sampler goes to sigma_next < sigma."""
        gradient, x0, similarities = noisy_gradient(x, denoise, decode, objective)
        gradient_rms = rms(gradient)
        usable = torch.isfinite(gradient_rms) & (gradient_rms > 0)
        step = self.m * (math.sqrt((1 + sigma**2) * (1 + sigma_next**2)) if self.vp else 1.0)
        move = -step * torch.where(per_sample(usable, gradient), gradient, 0.0)
        wide = x0.to(move)
        if self.max_displacement is not None:
            excess = rms(move) / (self.max_displacement * rms(wide))
            move = move / per_sample(excess.clamp_min(1.0), move)
        displacement = move / (1.0 - sigma_next / sigma)
        return CorrectionResult(
            x0=(wide + displacement).to(x0.dtype),
            similarities=similarities,
            gradient_rms=gradient_rms,
            displacement_rms=rms(displacement),
            skipped=~usable,
        )
