"""Fusing while sampling.

The OUTER_SAMPLE wrapper opens a run; the APPLY_MODEL wrapper finds the layers by name on whichever model really
executes (another device's copy, a compiled one), swaps their forwards for one call and puts them back whatever happens.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...fusion.adapters import BaseLayer
from ...fusion.layers import Batch, FusedLayer
from ...fusion.policies import PassPolicy
from ...fusion.records import Plan, Replay, RoutingRecord
from ...fusion.routing import Call, Picture, Router
from ..core import Kept, find_module, logger, picture_of, schedule_of
from ..maps import LiveMap
from .again import KeptCall, load
from .apart import Part, apart, have_latents_of_their_own, together
from .guiders import patchers_of
from .order import as_patches, left_to_core, said_of_left
from .run import Run
from .spec import FusionSpec, check_plan
from .unrouted import why_nothing

ATTACHMENT = "lora_conductor"
KEPT_PLANS = 8  # they are much larger than records


@dataclass
class RunResults:
    """What a run decided: the record in means, the plan in full, and one of its calls; those two are None once newer
    runs took its place."""

    record: RoutingRecord
    plan: Plan | None
    call: KeptCall | None = None


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
        self._apart: weakref.WeakSet[Any] = weakref.WeakSet()
        self.call: Call | None = None
        self.run: Run | None = None
        self._forwards: dict[str, _Forward] = {}

    def parts_of(self, batch: Batch, x: Tensor, model: nn.Module) -> list[Part]:
        """The calls that one on latents ``x`` has to be made of; none where it is made as it is."""
        return apart(batch, x, have_latents_of_their_own(model)) if _patched(model) in self._apart else []

    def run_apart(self, model: nn.Module) -> None:
        """From now on, prompts and latents run one by one, because layers mix their rows.

        That may be a patch's doing (HyperTile), so it is remembered of what the model runs for, and of nothing else.
        """
        self._apart.add(_patched(model))

    @contextmanager
    def executing(self, model: nn.Module, run: Run, call: Call) -> Iterator[None]:
        """Swap the forwards of the layers on this very model, and put them back."""
        replaced: list[tuple[nn.Module, Any]] = []
        outer, self.run, self.call = (self.run, self.call), run, call
        try:
            for layer in run.routed(self.layers):
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
            fused = layer.fuse(x, output, call.decide, base, call.batch.rows, call.decide_together)
            call.fusing += time.perf_counter() - start
            return fused

        # Routing keeps state, which a tracer would specialise on layer by layer; it runs as written instead.
        return torch.compiler.disable(forward) if "torch._dynamo" in sys.modules else forward


def _patched(model: nn.Module) -> Any:
    """The patcher that the model runs for: a clone each for what nodes have put on it."""
    return getattr(model, "current_patcher", None) or model


class LiveFusion:
    """The wrappers of one spec. Holds the open runs (sampling may nest) and what is left of the last few.

    ``shown_on`` is the execution id of the node that shows the routing map, if one does.
    """

    def __init__(self, spec: FusionSpec, shown_on: str | None = None) -> None:
        self.spec = spec
        self.shown_on = shown_on
        self._open: list[Run] = []
        self.kept: Kept[RunResults] = Kept()
        self._guests: dict[LiveFusion, Run] = {}  # of the present run: those that run on its other models
        self._loose: Run | None = None
        # Of calls that no sampling of ours surrounds, which may have a run each.
        self._schedules: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._standing_in: Any = None
        self._sites: weakref.WeakKeyDictionary[nn.Module, _Site] = weakref.WeakKeyDictionary()
        self._finding = threading.Lock()
        self._left: dict[int, frozenset[str]] = {}  # by the patcher of an open run
        self._ordered: dict[int, ExitStack] = {}  # by patchers that core uses without a run of ours around them

    def outer_sample(self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Open a run around a whole sampling (core's ``CFGGuider.outer_sample``)."""
        self._check()
        arguments = list(args)
        # Positions after noise and latent_image: sampler, sigmas, denoise_mask, callback, ...
        sigmas = arguments[1] if len(arguments) > 1 else kwargs["sigmas"]
        guider = executor.class_obj
        with self._in_order(patchers_of(guider)) as left:
            latents = noise.unbind()[0] if getattr(noise, "is_nested", False) else noise
            schedule = schedule_of(guider.model_patcher.get_model_object("model_sampling"))
            router = Router(self.spec.rules, schedule=schedule)
            run = Run(self.spec, router, tuple(sigmas.tolist()), guider, latents.shape[0], left)
            return self._sample(run, executor, noise, latent_image, arguments, kwargs)

    def _sample(
        self,
        run: Run,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        arguments: list[Any],
        kwargs: dict[str, Any],
    ) -> Tensor:
        live_map = LiveMap(run, self.shown_on, self.spec.header, self.spec.effects) if self.shown_on else None
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
        except BaseException:
            if live_map is not None:
                live_map.stop()
            raise
        finally:
            self._open.remove(run)
            run.close()
            guests, self._guests = self._guests, {}
            for guest, its_run in guests.items():
                guest._open.remove(its_run)
        for guest, its_run in guests.items():
            guest._keep(samples, its_run)
        results = self._keep(samples, run)
        if live_map is not None:
            live_map.finish(results.record, why_nothing(self.spec, is_merged=False))
        return samples

    @contextmanager
    def _in_order(self, models: list[ModelPatcher]) -> Iterator[frozenset[str]]:
        """For a run on the models, leave the layers to core where what is added while sampling would come too late.

        Gives their names. A sampling inside another one, on the same models, finds it done.
        """
        numbers = [id(model) for model in models]
        if numbers[0] in self._left:
            yield self._left[numbers[0]]
            return
        held = models[0].get_attachment(ATTACHMENT)
        ours = held.merged if held is not None else []
        left = left_to_core(models[0], self.spec, ours)
        if left:
            logger.warning("LoRA Conductor: %s", said_of_left(left))
        with as_patches(models, self.spec, left, ours):
            self._left |= dict.fromkeys(numbers, frozenset(left))
            try:
                yield frozenset(left)
            finally:
                for number in numbers:
                    del self._left[number]

    def _keep(self, samples: Tensor, run: Run) -> RunResults:
        call = run.kept_call
        results = RunResults(*run.results(), None if call is None else call.on(torch.device("cpu")))
        run.kept_call = None
        for older in self.kept:
            older.call = None
        self.kept.add(samples, results)
        for old in list(self.kept)[KEPT_PLANS:]:
            old.plan = None
        return results

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run one model call with the fused forwards in place (core's ``BaseModel.apply_model``)."""
        owner = self._owner(executor.class_obj)
        if owner is None:
            return executor(x, t, *args, **kwargs)
        if owner is not self:
            return owner._as_guest(self, executor, x, t, *args, **kwargs)
        site = self._site(executor.class_obj)
        # Positions after x and t: c_concat, c_crossattn, control, transformer_options.
        options = args[3] if len(args) > 3 else kwargs.get("transformer_options", {})
        run = self._open[-1] if self._open else self._loose_run(executor.class_obj, t, options)
        if site.call is not None or run.is_patched(x):
            return executor(x, t, *args, **kwargs)
        batch = run.batch_of(x, options)
        each = site.parts_of(batch, x, executor.class_obj)
        if not each:
            # Where no sampling of ours is open, they have been looked at.
            sigmas = options.get("sigmas") if self._open else None
            call = run.open_call(batch, _picture(executor.class_obj, x, t, *args, **kwargs), sigmas)
            output = self._executed(site, run, call, executor, x, t, *args, **kwargs)
            # Which layers mix rows is only seen when they run: the first call of several rows is made again.
            if call.mixed:
                site.run_apart(executor.class_obj)
            each = site.parts_of(batch, x, executor.class_obj)
            if not each:
                run.end_call(call)
                if not isinstance(self.spec.policy, PassPolicy):
                    run.keep_call(call, (x, t, *args), kwargs, output)
                return output
            run.router.forget(call)
        return self._one_by_one(site, run, batch, each, executor, x, t, *args, **kwargs)

    def _one_by_one(
        self, site: _Site, run: Run, batch: Batch, each: list[Part], executor: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A call of several prompts and latents as several calls."""
        outputs, calls = [], []
        for part in each:
            own_args, own_kwargs = part.arguments(args, kwargs)
            calls.append(run.open_call(part.batch, _picture(executor.class_obj, *own_args, **own_kwargs)))
            outputs.append(self._executed(site, run, calls[-1], executor, *own_args, **own_kwargs))
        if each[0].batch.only is None:
            for call in calls:
                run.end_call(call)
        else:
            run.end_calls(calls, batch)
        return together(outputs, each)

    def _executed(self, site: _Site, run: Run, call: Call, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        policy = self.spec.policy
        with site.executing(executor.class_obj, run, call):
            if isinstance(policy, PassPolicy) and self.spec.has_both_roles:
                return _in_passes(policy, call, run.routed(site.layers), executor, *args, **kwargs)
            return executor(*args, **kwargs)

    def _owner(self, model: Any) -> LiveFusion | None:
        """Whose LoRAs are on the patcher that the model runs for: ours, another one's, or none.

        Guiders may run several models with the options of one (core's Dual Model CFG Guider).
        """
        patcher = getattr(model, "current_patcher", None)
        if patcher is None:
            return self
        held = patcher.get_attachment(ATTACHMENT)
        return None if held is None else held.live

    def _as_guest(self, host: LiveFusion, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Our LoRAs, on a model that a run of other LoRAs runs too: a run of our own, step by step with it."""
        if not self._open and host._open:
            leader = host._open[-1]
            run = self._run_on(executor.class_obj, leader.sigmas, leader.guider)
            leader.followers.append(run)
            self._open.append(run)
            host._guests[self] = run
        return self.apply_model(executor, *args, **kwargs)

    def _left_on(self, model: Any) -> frozenset[str]:
        """Layers that are left to core on whatever patcher the model runs for."""
        return self._left.get(id(getattr(model, "current_patcher", None)), frozenset())

    def _run_on(self, model: Any, sigmas: tuple[float, ...], guider: Any = None) -> Run:
        """A run on a model of core's (BaseModel)."""
        sampling = model.model_sampling
        if sampling not in self._schedules:
            self._schedules[sampling] = schedule_of(sampling)
        router = Router(self.spec.rules, schedule=self._schedules[sampling])
        return Run(self.spec, router, sigmas, guider, left=self._left_on(model))

    def _loose_run(self, model: Any, t: Tensor, options: Mapping[str, Any]) -> Run:
        """The run of calls that no sampling of ours surrounds; it lasts until core is done with the model."""
        sigmas = options.get("sample_sigmas")
        if sigmas is None:
            return self._run_on(model, (float(t.max()), 0.0))
        known = tuple(sigmas.tolist())
        if self._loose is None or self._loose.sigmas != known:
            self._loose = self._run_on(model, known)
        self._loose.go_to_sigma(float(options["sigmas"].max()))
        return self._loose

    def pre_run(self, patcher: ModelPatcher) -> None:
        """Core is about to use a patcher that carries us (ON_PRE_RUN).

        A guider may do so with the options of another model, which do not have our wrappers: the model brings them.
        What it has loaded by then is loaded again if the order of the LoRAs asks for it.
        """
        if self._open:
            return
        self._end_order(patcher)
        with ExitStack() as stack:
            if stack.enter_context(self._in_order([patcher])):
                comfy.model_management.load_models_gpu([patcher])
            self._ordered[id(patcher)] = stack.pop_all()
        model = patcher.model
        self._loose, base = None, model.apply_model
        self._schedules.clear()  # a model's sampling may have been set anew

        def apply_model(x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            options = kwargs.get("transformer_options")
            if options is not None and self._owner(model) is self:
                wrappers = dict(options.get("wrappers", {}))
                own = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), ATTACHMENT: [self.apply_model]}
                kwargs["transformer_options"] = {**options, "wrappers": {**wrappers, WrappersMP.APPLY_MODEL: own}}
            return base(x, t, *args, **kwargs)

        self._standing_in = model.__dict__["apply_model"] = apply_model

    def cleanup(self, patcher: ModelPatcher) -> None:
        """Core is done with the patcher (ON_CLEANUP)."""
        own = patcher.model.__dict__
        if self._standing_in is not None and own.get("apply_model") is self._standing_in:
            del own["apply_model"]
        self._end_order(patcher)
        run, self._loose, self._standing_in = self._loose, None, None
        if run is not None:
            self._keep(torch.zeros(1, 0), run)

    def _end_order(self, patcher: ModelPatcher) -> None:
        stack = self._ordered.pop(id(patcher), None)
        if stack is not None:
            stack.close()

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
            call = run.open_text()
            with self._site(model).executing(model, run, call):
                result = base(**kwargs)
            run.end_call(call)
            return result

        extra_conds.without_loras = base  # type: ignore[attr-defined]
        model.__dict__["extra_conds"] = extra_conds
        try:
            yield
        finally:
            if before is None:
                del model.__dict__["extra_conds"]
            else:
                model.__dict__["extra_conds"] = before

    def distance(
        self, model: ModelPatcher, call: KeptCall, weights: Mapping[str, tuple[float, float]], push: float
    ) -> float:
        """How far what the model makes of a run's call is from the run's, with the same weights in all calls.

        Args:
            model: that carries us.
            call: of the run.
            weights: (subject, style) by segment.
            push: how many times these, and what layers of one LoRA get.

        Returns:
            Root mean square of the difference, over the range of the run's.
        """
        here = call.on(model.load_device)
        load(model, here)
        refinement = replace(self.spec.refinement, emphasis=push)
        router = Router(replace(self.spec.rules, refinement=refinement), fixed=weights)
        run, own = Run(self.spec, router, (1.0, 0.0)), router.open_call(here.batch, here.picture)
        module, before = model.model, model.model.current_patcher
        module.current_patcher = model
        try:
            with torch.inference_mode(), self._site(module).executing(module, run, own):
                return here.distance(module.apply_model(*here.args, **here.kwargs))
        finally:
            module.current_patcher = before

    def _site(self, model: nn.Module) -> _Site:
        with self._finding:
            layers = self.spec.layers_on(model)
            site = self._sites.get(model)
            # Core may have made the deltas anew for that device.
            if site is None or site.layers != layers:
                site = self._sites[model] = _Site(layers)
            return site

    def _check(self) -> None:
        spec = self.spec
        if isinstance(spec.policy, Replay):
            check_plan(spec, spec.policy.plan)


def _picture(model: nn.Module, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Picture:
    """What the arguments of a model call tell of its tokens."""
    text = args[1] if len(args) > 1 else kwargs.get("c_crossattn")
    return picture_of(model, x, text, kwargs)


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
