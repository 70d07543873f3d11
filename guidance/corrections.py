"""Corrections: how the gradient of the objective moves the predicted clean image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .losses import SimilarityObjective, View
from .moments import Moments
from .views import Views

Decode = Callable[[torch.Tensor], torch.Tensor]


def rms(x: torch.Tensor) -> torch.Tensor:
    """Root mean square of each sample: [B, ...] -> [B]."""
    return x.flatten(1).square().mean(dim=1).sqrt()


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] values, shaped to multiply [B, ...]."""
    return values.view((-1,) + (1,) * (like.ndim - 1))


@dataclass(frozen=True)
class CorrectionResult:
    """What a correction did; every field but `x0` has one entry per sample, [B].

    x0: the corrected prediction, shaped as the one given. similarities: each term, before the correction.
    gradient_rms, displacement_rms: of the first gradient and of x0 - x0_given, in x0's units. skipped: samples that
    were left alone because their gradient was zero or not finite.
    """

    x0: torch.Tensor
    similarities: dict[str, torch.Tensor]
    gradient_rms: torch.Tensor
    displacement_rms: torch.Tensor
    skipped: torch.Tensor

    def sample(self, index: int) -> CorrectionResult:
        """The result of one sample, still with a batch dimension."""
        one = slice(index, index + 1)
        similarities = {name: value[one] for name, value in self.similarities.items()}
        return CorrectionResult(
            self.x0[one], similarities, self.gradient_rms[one], self.displacement_rms[one], self.skipped[one]
        )


def latent_gradient(
    x0: torch.Tensor, decode: Decode, objective: SimilarityObjective, view: View | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gradient of the objective at the predicted clean latent, fp32 or wider, and the similarities there.

    x0: [B, C, ...] latent. decode: latent -> image [B, 3, H, W] in [0, 1], differentiable. view: images -> the views
    of them that the encoders see, None for the images themselves. The chain is cut at the image: encoders first, then
    one vector-Jacobian product through the decoder, so that the decoder's and the encoders' activations need not all
    be alive at once.
    """
    leaf = x0.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        image = decode(leaf)
    image_gradient, similarities = objective.gradient(image, view)
    # Unit RMS on the way through the decoder: a half-precision decoder would lose raw gradients of 1e-6 to underflow.
    scale = rms(image_gradient).clamp_min(torch.finfo(image_gradient.dtype).tiny)
    cotangent = (image_gradient / per_sample(scale, image_gradient)).to(image)
    (gradient,) = torch.autograd.grad(image, leaf, cotangent)
    # At least fp32 for what follows, fp64 kept.
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient * per_sample(scale, gradient).to(gradient), similarities


@dataclass
class CorrectionState:
    """What a correction carries from one guided step of a sample to the next. Every sample has one of its own."""

    moments: Moments | None = None
    # A fixed seed: a sample's crops depend neither on the batch it is in nor on anything drawn elsewhere.
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class X0Correction:
    """Gradient steps at the predicted clean latent, not through the denoiser.

    d = -eta * RMS(x0) * g / RMS(g) per sample, with g the gradient of the objective at x0. Taking the denoiser's
    Jacobian as identity costs no backward pass through it and suits eps, v and flow models alike (MPGD, arXiv
    2311.16424; RB-Modulation, arXiv 2405.17401). Normalising makes one eta fit every model, resolution and loss scale.

    eta: RMS of an inner step as a fraction of RMS(x0). max_displacement: limit of that fraction for all inner steps
    together. inner_steps: gradient steps at one prediction. anchor: weight of mean((x - x0)^2) / mean(x0^2), added to
    the objective; it holds inner steps back near the unguided prediction (RB-Modulation's last term). views: what the
    encoders see. betas: Adam's decays; None steps along the plain gradient. With them d = -eta * RMS(x0) * m / sqrt(v).
    """

    eta: float
    max_displacement: float = 0.5
    inner_steps: int = 1
    anchor: float = 0.0
    views: Views = Views()
    betas: tuple[float, float] | None = None

    def start(self) -> CorrectionState:
        """The state of a sample whose sampling begins."""
        return CorrectionState(None if self.betas is None else Moments(self.betas))

    def __call__(
        self,
        x0: torch.Tensor,
        decode: Decode,
        objective: SimilarityObjective,
        state: CorrectionState | None = None,
    ) -> CorrectionResult:
        """Correct the prediction x0, [B, C, ...]; with Adam, of one sample."""
        state = state or self.start()
        wide = x0.detach().to(torch.promote_types(x0.dtype, torch.float32))
        size = rms(wide)
        displacement = torch.zeros_like(wide)
        first: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None
        usable = torch.ones_like(size, dtype=torch.bool)
        view = (lambda images: self.views(images, state.generator)) if self.views.crops else None
        for _ in range(self.inner_steps):
            gradient, similarities = latent_gradient((wide + displacement).to(x0.dtype), decode, objective, view)
            gradient_rms = rms(gradient)
            first = first or (gradient_rms, similarities)
            usable &= torch.isfinite(gradient_rms) & (gradient_rms > 0)
            if not usable.any():
                break
            direction = self._direction(gradient, gradient_rms, displacement, size, usable, state)
            displacement = displacement - per_sample(self.eta * size, wide) * direction
            excess = rms(displacement) / (self.max_displacement * size)
            displacement = displacement / per_sample(excess.clamp_min(1.0), wide)
        assert first is not None
        return CorrectionResult(
            x0=(wide + displacement).to(x0.dtype),
            similarities=first[1],
            gradient_rms=first[0],
            displacement_rms=rms(displacement),
            skipped=~(torch.isfinite(first[0]) & (first[0] > 0)),
        )

    def _direction(
        self,
        gradient: torch.Tensor,
        gradient_rms: torch.Tensor,
        displacement: torch.Tensor,
        size: torch.Tensor,
        usable: torch.Tensor,
        state: CorrectionState,
    ) -> torch.Tensor:
        """The unit step of each sample, 0 where there is none."""
        # Not gradient * 0 for unusable samples: NaN * 0 is NaN.
        gradient = torch.where(per_sample(usable, gradient), gradient, 0.0)
        if self.anchor:
            count = displacement[0].numel()
            gradient = gradient + displacement * per_sample(2 * self.anchor / (count * size.square()), gradient)
        if state.moments is not None:
            return state.moments.direction(gradient)
        length = rms(gradient) if self.anchor else gradient_rms
        return gradient / per_sample(torch.where(usable & (length > 0), length, 1.0), gradient)
