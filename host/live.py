"""Fusing while sampling.

The OUTER_SAMPLE wrapper opens a run; the APPLY_MODEL wrapper finds the layers by name on whichever model really
executes (another device's copy, a compiled one), swaps their forwards for one call and puts them back whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..fusion.layers import Decide, FusedLayer
from ..fusion.policies import StaticPolicy
from ..fusion.record import RoutingRecord
from ..fusion.router import Router
from .errors import ConductorError
from .run import Run

if TYPE_CHECKING:
    from .fusion_patch import FusionSpec

KEPT_RUNS = 8


class LiveFusion:
    """The wrappers of one spec. Holds the open runs (sampling may nest) and the records of the last few."""

    def __init__(self, spec: FusionSpec) -> None:
        self.spec = spec
        self._open: list[Run] = []
        self._records: list[tuple[Tensor, RoutingRecord]] = []

    def outer_sample(self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Open a run around a whole sampling (core's ``CFGGuider.outer_sample``)."""
        self._check()
        arguments = list(args)
        # Positions after noise and latent_image: sampler, sigmas, denoise_mask, callback, ...
        sigmas = arguments[1] if len(arguments) > 1 else kwargs["sigmas"]
        run = Run(self._router(), tuple(sigmas.tolist()))
        if len(arguments) > 3:
            arguments[3] = run.counting(arguments[3])
        else:
            kwargs["callback"] = run.counting(kwargs.get("callback"))
        self._open.append(run)
        try:
            samples = executor(noise, latent_image, *arguments, **kwargs)
        finally:
            self._open.remove(run)
        kept = (samples.detach().cpu().clone(), run.record(self.spec.header))
        self._records = [*self._records[1 - KEPT_RUNS :], kept]
        return samples

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run one model call with the fused forwards in place (core's ``BaseModel.apply_model``)."""
        run = self._open[-1] if self._open else Run(self._router(), (float(t.max()), 0.0))
        with installed(self.spec.layers, executor.class_obj, run.router.decide):
            output = executor(x, t, *args, **kwargs)
        run.end_call()
        return output

    def record_of(self, samples: Tensor) -> RoutingRecord | None:
        """The record of the run that made these samples, if it is one of the last few."""
        for made, record in reversed(self._records):
            if made.shape == samples.shape and torch.equal(made, samples.to(made)):
                return record
        return None

    def _router(self) -> Router:
        return Router(self.spec.policy, *self.spec.prepared)

    def _check(self) -> None:
        spec = self.spec
        if spec.has_both_roles and spec.shared_layers == 0 and not isinstance(spec.policy, StaticPolicy):
            names = " and ".join(f"'{lora.name}'" for lora in spec.loras)
            raise ConductorError(
                f"{names} have no layer in common, so the policy '{spec.policy.name}' has nothing to decide. "
                "Set KLLayerRouter's policy to 'sum' to apply both as they are."
            )


@contextmanager
def installed(layers: Iterable[FusedLayer], model: nn.Module, decide: Decide) -> Iterator[None]:
    """Swap the forwards of the layers on this very model, and put them back."""
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for layer in layers:
            module = _find(model, layer.name)
            replaced.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _fused_forward(layer, module.forward, decide)
        yield
    finally:
        for module, before in reversed(replaced):
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


def _fused_forward(layer: FusedLayer, base_forward: Any, decide: Decide) -> Any:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer.fuse(x, base_forward(x, *args, **kwargs), decide)

    return forward


def _find(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, looked up through ``torch.compile``'s wrapper modules."""
    module: Any = model
    for part in name.split("."):
        module = getattr(module, "_orig_mod", module)
        module = getattr(module, part)
    return getattr(module, "_orig_mod", module)
