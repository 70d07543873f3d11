"""What guidance needs of the sampler's noisy side: gradients through the denoiser, and noising anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP

from ..vision import StandIns, checkpointed, normal_copy, overwriting_allowed


class Denoiser:
    """The model's prediction, noisy latent -> clean latent, CFG included, with gradients.

    model: the core BaseModel that predicts. predict: (x, sigma, model_options, seed) -> denoised, through core.
    beside: other networks that run in a prediction (ControlNets), loaded under inference mode as the model may be.
    Activations are recomputed in the backward pass, so that a full-size network fits, unless something changes the
    network for the time of a call only, as routed LoRAs do: the backward pass comes when that is over.
    """

    def __init__(
        self,
        model: Any,
        predict: Callable[..., torch.Tensor],
        sigma: torch.Tensor,
        model_options: Any,
        seed: Any,
        beside: Iterable[torch.nn.Module] = (),
    ) -> None:
        self._network = model.diffusion_model
        self._stand_ins = StandIns(model)
        self._beside = [StandIns(module) for module in beside if module is not model]
        self._predict = predict
        self._arguments = (sigma, model_options, seed)
        self._recompute = not changes_network(model_options)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Call inside `gradients_enabled`. The backward pass may come later."""
        sigma, model_options, seed = self._arguments
        with ExitStack() as stack:
            for stand_ins in (self._stand_ins, *self._beside):
                stack.enter_context(stand_ins.installed())
            stack.enter_context(overwriting_allowed())
            if self._recompute:
                stack.enter_context(checkpointed(self._network, self._stand_ins))
            return self._predict(x, normal_copy(sigma), model_options, seed)

    def close(self) -> None:
        """Free what it holds."""
        for stand_ins in (self._stand_ins, *self._beside):
            stand_ins.close()


def changes_network(model_options: dict[str, Any]) -> bool:
    """Whether something changes the network for the time of a call, as routed LoRAs do."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return any(wrappers.get(kind) for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL))


def renoised(
    model: Any,
    x: torch.Tensor,
    x0: torch.Tensor,
    sigma: float,
    sigma_next: float,
    seed: tuple[int, int, int],
    names: Sequence[str],
) -> torch.Tensor:
    """Time travel: an Euler step from x at sigma to sigma_next with the prediction x0, then noise back to sigma.

    seed: of the run, the step and the repetition. names: of the samples (see `names_of`); each draws its own noise from
    all of these, whatever else is in the batch.
    """
    following = x + (sigma_next / sigma - 1.0) * (x - x0)
    samples = []
    for name in names:
        digest = hashlib.sha256(":".join(map(str, (*seed, name))).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        samples.append(torch.randn(x.shape[1:], generator=generator))
    noise = torch.stack(samples).to(x)
    shrink = (1.0 - sigma) / (1.0 - sigma_next) if is_flow(model) else 1.0
    return following * shrink + max(sigma**2 - (shrink * sigma_next) ** 2, 0.0) ** 0.5 * noise


def names_of(noise: torch.Tensor) -> list[str]:
    """A name for each sample of a run, by the noise [B, C, ...] that it starts from: the same wherever it stands in a
    batch, and however the batch was cut. Samples that start from the same noise are told apart by their place."""
    names: list[str] = []
    for sample in noise.detach().cpu().float():
        name = hashlib.sha256(sample.contiguous().numpy().tobytes()).hexdigest()[:16]
        same = sum(other.startswith(name) for other in names)
        names.append(f"{name}.{same}" if same else name)
    return names


def is_flow(model: Any) -> bool:
    """Whether x = (1 - sigma) x0 + sigma * noise, rather than x0 + sigma * noise."""
    return isinstance(model.model_sampling, comfy.model_sampling.CONST)
