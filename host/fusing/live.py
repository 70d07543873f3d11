"""Fusing while sampling.

The OUTER_SAMPLE wrapper opens a run; the APPLY_MODEL wrapper finds the layers by name on whichever model really
executes (another device's copy, a compiled one), swaps their forwards for one call and puts them back whatever happens.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...fusion.adapters import BaseLayer
from ...fusion.layers import FusedLayer
from ...fusion.policies import PassPolicy
from ...fusion.records import Plan, Replay, RoutingRecord
from ...fusion.routing import Call, Router
from ..core import ConductorError, find_module
from ..maps import LiveMap
from .run import Run
from .spec import FusionSpec, check_plan

KEPT_RUNS = 8


class _Forward(NamedTuple):
    """A fused forward, and what it was made for."""

    module: nn.Module
    before: Any
    function: Any


class _Site:
    """A spec on one model that executes: core may have a copy of the model, and of the deltas, on every device.

    A model executes one call at a time, in whatever thread; its forwards find that call here.
    """

    def __init__(self, layers: list[FusedLayer]) -> None:
        self.layers = layers
        self.call: Call | None = None
        self.run: Run | None = None
        self._forwards: dict[str, _Forward] = {}

    @contextmanager
    def executing(self, model: nn.Module, run: Run, call: Call) -> Iterator[None]:
        """Swap the forwards of the layers on this very model, and put them back; what was decided is the run's."""
        replaced: list[tuple[nn.Module, Any]] = []
        outer, self.run, self.call = (self.run, self.call), run, call
        try:
            for layer in self.layers:
                module = find_module(model, layer.name)
                before = module.__dict__.get("forward")
                replaced.append((module, before))
                module.__dict__["forward"] = self._forward_for(layer, module, before)
            yield
        finally:
            for module, before in reversed(replaced):
                if before is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = before
            self.run, self.call = outer  # they hold the run's decisions and the model
        run.end_call(call)

    def _forward_for(self, layer: FusedLayer, module: nn.Module, before: Any) -> Any:
        """The layer's fused forward, the same function from call to call: a compiled model is not compiled again."""
        kept = self._forwards.get(layer.name)
        if kept is None or kept.module is not module or kept.before is not before:
            kept = self._forwards[layer.name] = _Forward(module, before, self._fused(layer, module.forward))
        return kept.function

    def _fused(self, layer: FusedLayer, base_forward: Any) -> Any:
        # Weakly: a cycle would keep the deltas, and their place in core's list of loaded models, until a collection.
        here = weakref.proxy(self)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            def plain(inputs: Tensor) -> Tensor:
                return base_forward(inputs, *args, **kwargs)

            call = here.call
            base = BaseLayer(plain, layer.geometry, here.run.measured_of(base_forward))
            output = plain(x)
            start = time.perf_counter()
            fused = layer.fuse(x, output, call.decide, base)
            call.fusing += time.perf_counter() - start
            return fused

        # Routing keeps state, which a tracer would specialise on layer by layer; it runs as written instead.
        return torch.compiler.disable(forward) if "torch._dynamo" in sys.modules else forward


class LiveFusion:
    """The wrappers of one spec. Holds the open runs (sampling may nest) and the results of the last few.

    ``shown_on`` is the execution id of the node that shows the routing map, if one does.
    """

    def __init__(self, spec: FusionSpec, shown_on: str | None = None) -> None:
        self.spec = spec
        self.shown_on = shown_on
        self._open: list[Run] = []
        self._results: list[tuple[Tensor, RoutingRecord, Plan]] = []
        self._sites: weakref.WeakKeyDictionary[nn.Module, _Site] = weakref.WeakKeyDictionary()
        self._finding = threading.Lock()

    def outer_sample(self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Open a run around a whole sampling (core's ``CFGGuider.outer_sample``)."""
        self._check()
        arguments = list(args)
        # Positions after noise and latent_image: sampler, sigmas, denoise_mask, callback, ...
        sigmas = arguments[1] if len(arguments) > 1 else kwargs["sigmas"]
        guider = executor.class_obj
        # Guiders of other kinds than core's combine their passes in ways of their own; none of them is told apart.
        cfg = float(getattr(guider, "cfg", 1.0))
        run = Run(self.spec, self._router(cfg), tuple(sigmas.tolist()), guider)
        live_map = LiveMap(run, self.shown_on, self.spec.header) if self.shown_on else None
        callback = arguments[3] if len(arguments) > 3 else kwargs.get("callback")
        counting = run.counting(live_map.watching(callback) if live_map is not None else callback)
        if len(arguments) > 3:
            arguments[3] = counting
        else:
            kwargs["callback"] = counting
        self._open.append(run)
        try:
            with self._conditioning(executor.class_obj.model_patcher.model, run):
                samples = executor(noise, latent_image, *arguments, **kwargs)
        finally:
            self._open.remove(run)
            run.close()
        kept = (samples.detach().cpu().clone(), *run.results())
        if live_map is not None:
            live_map.finish(kept[1])
        self._results = [*self._results[1 - KEPT_RUNS :], kept]
        return samples

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run one model call with the fused forwards in place (core's ``BaseModel.apply_model``)."""
        run = self._open[-1] if self._open else Run(self.spec, self._router(), (float(t.max()), 0.0))
        if run.is_patched(x):
            return executor(x, t, *args, **kwargs)
        # Positions after x and t: c_concat, c_crossattn, control, transformer_options.
        call = run.open_call(x, args[3] if len(args) > 3 else kwargs.get("transformer_options", {}))
        policy, site = self.spec.policy, self._site(executor.class_obj)
        with site.executing(executor.class_obj, run, call):
            if isinstance(policy, PassPolicy) and self.spec.has_both_roles:
                return _in_passes(policy, call, site.layers, executor, x, t, *args, **kwargs)
            return executor(x, t, *args, **kwargs)

    @contextmanager
    def _conditioning(self, model: Any, run: Run) -> Iterator[None]:
        """Fuse, too, where core makes a model's conditioning (``BaseModel.extra_conds``).

        Some models (Anima, LTX with sound, MiniMax) put the text through layers of their own there, once a run, which
        a LoRA may be for.
        """
        before = model.__dict__.get("extra_conds")
        # A sampling inside another one finds the outer one's function; its LoRAs are not for the inner one.
        base = getattr(before, "without_loras", before) or model.extra_conds

        def extra_conds(**kwargs: Any) -> Any:
            with self._site(model).executing(model, run, run.open_text()):
                return base(**kwargs)

        extra_conds.without_loras = base  # type: ignore[attr-defined]
        model.__dict__["extra_conds"] = extra_conds
        try:
            yield
        finally:
            if before is None:
                del model.__dict__["extra_conds"]
            else:
                model.__dict__["extra_conds"] = before

    def _site(self, model: nn.Module) -> _Site:
        with self._finding:
            layers = self.spec.layers_on(model)
            site = self._sites.get(model)
            # Core may have made the deltas anew for that device.
            if site is None or site.layers != layers:
                site = self._sites[model] = _Site(layers)
            return site

    def results_of(self, samples: Tensor) -> tuple[RoutingRecord, Plan]:
        """Record and plan of the run that made these samples.

        Raises:
            ConductorError: it is not one of the last few.
        """
        for made, record, plan in reversed(self._results):
            if made.shape == samples.shape and torch.equal(made, samples.to(made)):
                return record, plan
        raise ConductorError(
            "This model did not make this latent in its last few runs. Connect the sampler's own latent, before it is "
            "scaled or changed; if the sampler was cached, change its seed and queue again."
        )

    def _router(self, cfg: float = 1.0) -> Router:
        return Router(self.spec.rules, cfg if self.spec.emphasis != 1.0 else 1.0)

    def _check(self) -> None:
        spec = self.spec
        if isinstance(spec.policy, Replay):
            check_plan(spec, spec.policy.plan)


def _in_passes(
    policy: PassPolicy, call: Call, layers: list[FusedLayer], executor: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """One model call for each role the policy asks for; the mean of their outputs."""
    outputs = []
    for role in policy.passes(call.context):
        call.role = role
        outputs.append(executor(*args, **kwargs))
        call.note_pass(role, layers)
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
