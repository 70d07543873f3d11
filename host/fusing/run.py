"""One sampling run: its steps, its router, and what was decided."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...fusion.layers import Batch, FusedLayer, whole_of
from ...fusion.policies import PassPolicy, ScoredPolicy, StaticPolicy
from ...fusion.records import (
    CallDecisions,
    Plan,
    Replay,
    RoutingRecord,
    in_order,
    log_ratios_of,
    merged,
    plan_of,
    read_back,
    record_of,
)
from ...fusion.routing import Call, Picture, Router
from .again import KeptCall
from .freezing import Frozen, freeze
from .guiders import cfg_of, is_steady, patchers_of
from .spec import FusionSpec

FOLLOWED, TEXT = "positive.0", "text"


@dataclass(eq=False)
class Run:
    """Opened when sampling starts, closed when it ends, whatever ends it.

    The step index comes from the sampler's own callback, which fires once a step: nothing has to be read back from
    the device to know it, and samplers that call the model several times a step stay in the same step. Where none has
    fired by the second call, the calls' noise levels are looked at.

    Attributes:
        spec: what is fused, and how.
        router: decides.
        sigmas: the noise levels, ``steps + 1`` of them.
        guider: core's, which samples; None for a model that is called without one.
        latents: how many are sampled at once; 0 where that is not known.
        left: layers whose LoRAs core applies, as weight patches.
        calls: what was decided so far.
        frozen: the decisions of the rest of the run, once they are made.
        followers: runs of other LoRAs, on other models of the same guider, that go step by step with this one.
        kept_call: one in the middle of the run, to be made again.
        started: when, by the host's clock.
        fusing: seconds that scoring and fusing took so far, by the same clock.
    """

    spec: FusionSpec
    router: Router
    sigmas: tuple[float, ...]
    guider: Any = None
    latents: int = 0
    left: frozenset[str] = frozenset()
    calls: list[CallDecisions] = field(default_factory=list)
    frozen: Frozen | None = None
    followers: list[Run] = field(default_factory=list)
    kept_call: KeptCall | None = None
    started: float = field(default_factory=time.perf_counter)
    fusing: float = 0.0
    _names: dict[Any, str] = field(default_factory=dict)
    _measured: dict[Any, dict[Any, Any]] = field(default_factory=dict)
    _shape: torch.Size | None = None
    _counted: bool = False
    _called: set[str] = field(default_factory=set)
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.left |= self.spec.settled
        self._go_to(0)

    @property
    def steps(self) -> int:
        return max(1, len(self.sigmas) - 1)

    @property
    def step(self) -> int:
        return self.router.context.step

    def _go_to(self, step: int) -> None:
        self.router.go_to(min(step, self.steps - 1), self.sigmas)
        for follower in self.followers:
            follower._go_to(step)

    def go_to_sigma(self, sigma: float) -> None:
        """For calls that no callback counts: the last step that begins at that noise level or above."""
        begun = [i for i, level in enumerate(self.sigmas[:-1]) if level >= sigma * (1 - 1e-5)]
        self._go_to(begun[-1] if begun else 0)

    def counting(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's callback, counting steps on its way."""

        def count(step: int, x0: Tensor, x: Tensor, total_steps: int) -> Any:
            for run in (self, *self.followers):
                run._counted = True
            self._go_to(step + 1)
            result = callback(step, x0, x, total_steps) if callback is not None else None
            # Here no call is under way on any device.
            self._freeze_in_time()
            return result

        return count

    def measured_of(self, base_forward: Callable[..., Any]) -> dict[Any, Any]:
        """What adapters have measured of a base layer. Its weights hold still while a run lasts, and no longer."""
        return self._measured.setdefault(base_forward, {})

    def routed(self, layers: list[FusedLayer]) -> list[FusedLayer]:
        """Those of the layers whose LoRAs core does not apply."""
        return [layer for layer in layers if layer.name not in self.left] if self.left else layers

    def batch_of(self, x: Tensor, transformer_options: Mapping[str, Any]) -> Batch:
        """What a call on latents ``[rows, channels, ...]`` computes."""
        return Batch(self._keys(transformer_options), FOLLOWED, x.shape[0], self.latents)

    def open_call(self, batch: Batch, picture: Picture, sigmas: Tensor | None = None) -> Call:
        """A model call begins, at noise levels that are a tensor of one or more numbers."""
        if not self._counted and sigmas is not None:
            if not self._called.isdisjoint(batch.places):
                self.go_to_sigma(float(sigmas.max()))
            self._called.update(batch.places)
        if self.spec.emphasis != 1.0:
            self.router.guide_by(cfg_of(self.guider, self.step, self.steps))
        return self.router.open_call(batch, picture)

    def keep_call(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """Keep the first call of the middle step, with the positive prompt in it."""
        here = self.kept_call is None and self.step == self.steps // 2
        if here and not self.left - self.spec.settled and any(key.startswith("positive") for key in call.batch.keys):
            kept = KeptCall.of(self.step, call.batch, call.picture, args, kwargs, output)
            # Samplers may write into what they gave, and into what they got.
            self.kept_call = None if kept is None else kept.on(output.device)

    def open_text(self) -> Call:
        """Layers are about to run on a prompt, before the first step; which condition's, core does not say."""
        return self.router.open_call(Batch((TEXT,), TEXT))

    def end_call(self, call: Call) -> None:
        """Keep the decisions of a model call that just ended. Nothing is copied to the host yet."""
        self.end_calls([call], call.batch)

    def end_calls(self, calls: Sequence[Call], batch: Batch) -> None:
        """The same of calls that stand for a single one, a row of its batch each."""
        with self._ending:
            self.fusing += sum(call.fusing for call in calls)
            if any(call.decisions for call in calls):
                decided = [call.decided() for call in calls]
                self.calls.append(decided[0] if len(decided) == 1 else merged(decided, batch))

    def _keys(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the conditions in a call's batch, the same in every run, however they are packed."""
        kinds, uuids = options.get("cond_or_uncond") or [0], options.get("uuids") or []
        if any(uuid not in self._names for uuid in uuids):
            # As core keeps them; the sampler may have added to them since the run began.
            for name, conditions in getattr(self.guider, "conds", {}).items():
                for i, condition in enumerate(conditions or ()):
                    self._names.setdefault(condition.get("uuid"), f"{name}.{i}")
        if len(uuids) == len(kinds) and all(uuid in self._names for uuid in uuids):
            return tuple(self._names[uuid] for uuid in uuids)
        # Callers with conditions of their own: positive ones come first in core's lists.
        names = ["positive" if kind == 0 else "negative" if kind == 1 else str(kind) for kind in kinds]
        return tuple(f"{name}.{names[:i].count(name)}" for i, name in enumerate(names))

    def results(self) -> tuple[RoutingRecord, Plan]:
        """The record and the plan of all decisions: the only read-back from the device, once a run."""
        header = self.spec.header
        calls = in_order(read_back(self.calls))
        policy = self.spec.policy
        if isinstance(policy, Replay):
            plan = policy.plan
        else:
            planned = calls if isinstance(policy, ScoredPolicy) else []
            plan = plan_of(planned, self.sigmas, header, None if self.frozen is None else self.frozen.weights)
        record = record_of(calls, self.sigmas, header, self.spec.effects)
        if self.frozen is not None:
            pairs = [self.frozen.weights.get(name, (1.0, 1.0)) for name in record.layers]
            record.weights[:, :, self.frozen.step :] = (
                torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T[:, :, None]
            )
        return replace(record, took=(time.perf_counter() - self.started, self.fusing)), plan

    def is_patched(self, x: Tensor) -> bool:
        """Whether the decisions are weight patches by now, so that a call on latents like these runs as it is."""
        self._shape = x.shape
        return self.frozen is not None and bool(self.frozen.models)

    @cached_property
    def _freezes_at(self) -> int | None:
        steps = [self.router.context_of(step, self.sigmas) for step in range(self.steps)]
        return self.spec.refinement.freeze_step(steps)

    def _freeze_in_time(self) -> None:
        """Settle the decisions when it is time; as weight patches, if every pass gets the same."""
        after = self._freezes_at
        if after is None or self.step < after or self.frozen is not None or self._shape is None:
            return
        policy = self.spec.policy
        if isinstance(policy, PassPolicy | StaticPolicy):
            return
        if isinstance(policy, Replay) and policy.plan.frozen is None:
            return  # the planned run was over before; its last decisions go on
        weights = self._settled()
        if self.router.tells_passes_apart or not (is_steady(self.guider) or self.spec.emphasis == 1.0):
            self.router.fixed = weights
            self.frozen = Frozen((), self.step, weights)
        else:
            push = self.spec.rules.push(self.router.cfg)
            self.frozen = freeze(self.guider, self.spec, weights, self.step, self._shape, self.left, push)

    def _settled(self) -> dict[str, tuple[float, float]]:
        """By segment, the weights (subject, style) for the rest of the run.

        What was measured so far, on average over samples and conditions, is put to the policy for the middle of what is
        left: a policy that hands over in time would otherwise stay where it was.
        """
        policy = self.spec.policy
        if isinstance(policy, Replay):
            assert policy.plan.frozen is not None
            frozen = dict(zip(policy.plan.layers, policy.plan.frozen, strict=True))
            segments = (segment.name for layer in self.spec.layers for segment in layer.segments)
            # A plan may be older than the cuts of layers that hold queries, keys and values.
            return {name: frozen[whole_of(name)] for name in segments if whole_of(name) in frozen} | frozen
        middle = round((self.step + self.steps - 1) / 2)
        at = self.router.context_of(middle, self.sigmas)
        ratios = log_ratios_of(in_order(read_back(self.calls)))
        return {name: self.router.rules.settled(name, ratio, at) for name, ratio in ratios.items()}

    def close(self) -> None:
        """The weights are as they were, however the run ended."""
        if self.frozen is not None and self.frozen.models:
            self.frozen.thaw(patchers_of(self.guider))
