"""Fusing while sampling.

The OUTER_SAMPLE wrapper opens a run; the APPLY_MODEL wrapper finds the layers by name on whichever model really
executes (another device's copy, a compiled one), swaps their forwards for one call and puts them back whatever happens.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...fusion.adapters.base_layer import BaseLayer
from ...fusion.layers.layer import FusedLayer
from ...fusion.layers.probe import Probe
from ...fusion.layers.segment import Segment, Weight
from ...fusion.policies import PassPolicy, StaticPolicy
from ...fusion.records.plan import Plan
from ...fusion.records.record import RoutingRecord
from ...fusion.records.replay import Replay
from ...fusion.routing.router import Router
from ..core.errors import ConductorError
from ..core.modules import find_module
from ..maps.live import LiveMap
from .freezing import Frozen, freeze
from .run import Run
from .spec import FusionSpec, check_plan

KEPT_RUNS = 8


class _Forward(NamedTuple):
    """A fused forward, and what it was made for."""

    module: nn.Module
    before: Any
    function: Any


class LiveFusion:
    """The wrappers of one spec. Holds the open runs (sampling may nest) and the records of the last few.

    ``shown_on`` is the execution id of the node that shows the routing map, if one does.
    """

    def __init__(self, spec: FusionSpec, shown_on: str | None = None) -> None:
        self.spec = spec
        self.shown_on = shown_on
        self._open: list[Run] = []
        self._running: Run | None = None
        self._guider: Any = None
        self._records: list[tuple[Tensor, RoutingRecord, Plan]] = []
        self._forwards: dict[str, _Forward] = {}

    def outer_sample(self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Open a run around a whole sampling (core's ``CFGGuider.outer_sample``)."""
        self._check()
        arguments = list(args)
        # Positions after noise and latent_image: sampler, sigmas, denoise_mask, callback, ...
        sigmas = arguments[1] if len(arguments) > 1 else kwargs["sigmas"]
        guider = executor.class_obj
        # Guiders of other kinds than core's combine their passes in ways of their own; none of them is told apart.
        cfg = float(getattr(guider, "cfg", 1.0))
        run = Run(self._router(cfg), tuple(sigmas.tolist()), lambda: guider.conds)
        live_map = LiveMap(run, self.shown_on, self.spec.header) if self.shown_on else None
        callback = arguments[3] if len(arguments) > 3 else kwargs.get("callback")
        counting = run.counting(live_map.watching(callback) if live_map is not None else callback)
        if len(arguments) > 3:
            arguments[3] = counting
        else:
            kwargs["callback"] = counting
        self._open.append(run)
        self._guider = guider
        try:
            with self._conditioning(executor.class_obj.model_patcher.model, run):
                samples = executor(noise, latent_image, *arguments, **kwargs)
        finally:
            self._open.remove(run)
            if run.frozen is not None:
                run.frozen.thaw(guider.model_patcher)
            self._running = self._guider = None  # they hold the run's decisions and the model
        kept = (samples.detach().cpu().clone(), *run.results(self.spec.header))
        if live_map is not None:
            live_map.finish(kept[1])
        self._records = [*self._records[1 - KEPT_RUNS :], kept]
        return samples

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run one model call with the fused forwards in place (core's ``BaseModel.apply_model``)."""
        run = self._open[-1] if self._open else Run(self._router(), (float(t.max()), 0.0))
        if self._frozen(run, x):
            return executor(x, t, *args, **kwargs)
        self._running = run
        # Positions after x and t: c_concat, c_crossattn, control, transformer_options.
        run.open_call(x, args[3] if len(args) > 3 else kwargs.get("transformer_options", {}))
        policy = self.spec.policy
        with self._installed(executor.class_obj):
            if isinstance(policy, PassPolicy) and self.spec.has_both_roles:
                output = self._in_passes(policy, run.router, executor, x, t, *args, **kwargs)
            else:
                output = executor(x, t, *args, **kwargs)
        run.end_call()
        return output

    def _frozen(self, run: Run, x: Tensor) -> bool:
        """Whether the decisions are weight patches by now; settles them, as those if they can be, when it is time."""
        after = self.spec.refinement.freeze_step(run.steps)
        if after is None or run.step < after or isinstance(self.spec.policy, PassPolicy | StaticPolicy):
            return False
        if run.frozen is None:
            weights = run.settle()
            if run.router.tells_passes_apart:
                run.router.fixed = weights
                run.frozen = Frozen(None, run.step, weights)
            else:
                assert self._guider is not None
                patcher, beside = self._guider.model_patcher, self._guider.loaded_models
                run.frozen = freeze(patcher, beside, self.spec, weights, run.step, x.shape)
        return run.frozen.model is not None

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
            self._running = run
            run.open_text()
            with self._installed(model):
                conds = base(**kwargs)
            run.end_call()
            return conds

        extra_conds.without_loras = base  # type: ignore[attr-defined]
        model.__dict__["extra_conds"] = extra_conds
        try:
            yield
        finally:
            if before is None:
                del model.__dict__["extra_conds"]
            else:
                model.__dict__["extra_conds"] = before

    def _in_passes(self, policy: PassPolicy, router: Router, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One model call for each role the policy asks for; the mean of their outputs."""
        outputs = []
        try:
            for role in policy.passes(router.context):
                router.role = role
                outputs.append(executor(*args, **kwargs))
                router.note_pass(role, self.spec.layers)
        finally:
            router.role = None
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    @contextmanager
    def _installed(self, model: nn.Module) -> Iterator[None]:
        """Swap the forwards of the spec's layers on this very model, and put them back."""
        replaced: list[tuple[nn.Module, Any]] = []
        try:
            for layer in self.spec.layers:
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

    def _forward_for(self, layer: FusedLayer, module: nn.Module, before: Any) -> Any:
        """The layer's fused forward, the same function from call to call: a compiled model is not compiled again."""
        kept = self._forwards.get(layer.name)
        if kept is None or kept.module is not module or kept.before is not before:
            kept = self._forwards[layer.name] = _Forward(module, before, self._fused(layer, module.forward))
        return kept.function

    def _fused(self, layer: FusedLayer, base_forward: Any) -> Any:
        # Weakly: a cycle would keep the deltas, and their place in core's list of loaded models, until a collection.
        me = weakref.proxy(self)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            def plain(inputs: Tensor) -> Tensor:
                return base_forward(inputs, *args, **kwargs)

            assert me._running is not None
            base = BaseLayer(plain, layer.geometry, me._running.measured_of(base_forward))
            output = plain(x)
            start = time.perf_counter()
            fused = layer.fuse(x, output, me._decide, base)
            me._running.fusing += time.perf_counter() - start
            return fused

        # Routing keeps state, which a tracer would specialise on layer by layer; it runs as written instead.
        return torch.compiler.disable(forward) if "torch._dynamo" in sys.modules else forward

    def _decide(self, segment: Segment, probe: Probe) -> dict[str, Weight]:
        assert self._running is not None
        return self._running.router.decide(segment, probe)

    def record_of(self, samples: Tensor) -> RoutingRecord | None:
        """The record of the run that made these samples, if it is one of the last few."""
        for made, record, _ in reversed(self._records):
            if made.shape == samples.shape and torch.equal(made, samples.to(made)):
                return record
        return None

    def results_of(self, samples: Tensor) -> tuple[RoutingRecord, Plan]:
        """Record and plan of the run that made these samples.

        Raises:
            ConductorError: it is not one of the last few.
        """
        for made, record, plan in reversed(self._records):
            if made.shape == samples.shape and torch.equal(made, samples.to(made)):
                return record, plan
        raise ConductorError(
            "This model did not make this latent in its last few runs. Connect the sampler's own latent, before it is "
            "scaled or changed; if the sampler was cached, change its seed and queue again."
        )

    def _router(self, cfg: float = 1.0) -> Router:
        spec = self.spec
        return Router(spec.policy, spec.refinement, spec.prepared, cfg=cfg if spec.emphasis != 1.0 else 1.0)

    def _check(self) -> None:
        spec = self.spec
        if isinstance(spec.policy, Replay):
            check_plan(spec, spec.policy.plan)
        if spec.has_both_roles and spec.shared_layers == 0 and not isinstance(spec.policy, (StaticPolicy, PassPolicy)):
            names = " and ".join(f"'{lora.name}'" for lora in spec.loras)
            raise ConductorError(
                f"{names} have no layer in common, so the policy '{spec.policy.name}' has nothing to decide. "
                "Set KLLayerRouter's policy to 'sum' to apply both as they are."
            )
