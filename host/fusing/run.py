"""One sampling run: its steps, its router, and what was decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...fusion.layers.batch import Batch
from ...fusion.policies import ScoredPolicy
from ...fusion.records.decisions import CallDecisions, log_ratios_of, read_back
from ...fusion.records.plan import Plan, plan_of
from ...fusion.records.record import RoutingRecord, record_of
from ...fusion.records.replay import Replay
from ...fusion.routing.router import Router
from .freezing import Frozen

FOLLOWED, TEXT = "positive.0", "text"


@dataclass(eq=False)
class Run:
    """Opened when sampling starts, closed when it ends, whatever ends it.

    The step index comes from the sampler's own callback, which fires once a step: nothing has to be read back from
    the device to know it, and samplers that call the model several times a step stay in the same step.

    Attributes:
        router: decides.
        sigmas: the noise levels, ``steps + 1`` of them.
        conditions: the sampler's conditions by name ("positive", "negative"), as core keeps them; read when needed,
            since the sampler adds to them.
        calls: what was decided so far.
        frozen: the model with the decisions as weight patches, once they are.
        started: when, by the host's clock.
        fusing: seconds that scoring and fusing took so far, by the same clock.
    """

    router: Router
    sigmas: tuple[float, ...]
    conditions: Callable[[], Mapping[str, Any]] = dict
    calls: list[CallDecisions] = field(default_factory=list)
    frozen: Frozen | None = None
    started: float = field(default_factory=time.perf_counter)
    fusing: float = 0.0
    _names: dict[Any, str] = field(default_factory=dict)
    _measured: dict[Any, dict[Any, Any]] = field(default_factory=dict)
    _call: tuple[Batch, tuple[int, ...]] = (Batch(), (0,))

    def __post_init__(self) -> None:
        self._go_to(0)

    @property
    def steps(self) -> int:
        return max(1, len(self.sigmas) - 1)

    @property
    def step(self) -> int:
        return self.router.context.step

    def _go_to(self, step: int) -> None:
        self.router.go_to(min(step, self.steps - 1), self.sigmas)

    def counting(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """The sampler's callback, counting steps on its way."""

        def count(step: int, x0: Tensor, x: Tensor, total_steps: int) -> Any:
            self._go_to(step + 1)
            return callback(step, x0, x, total_steps) if callback is not None else None

        return count

    def measured_of(self, base_forward: Callable[..., Any]) -> dict[Any, Any]:
        """What adapters have measured of a base layer. Its weights hold still while a run lasts, and no longer."""
        return self._measured.setdefault(base_forward, {})

    def open_call(self, x: Tensor, transformer_options: Mapping[str, Any]) -> None:
        """A model call begins, with latents ``[batch, channels, ...]``."""
        batch = Batch(self._keys(transformer_options), FOLLOWED)
        self.router.latent = tuple(x.shape[2:])
        self._call = batch, self.router.open_call(batch)

    def open_text(self) -> None:
        """Layers are about to run on a prompt, before the first step; which condition's, core does not say."""
        batch = Batch((TEXT,), TEXT)
        self._call = batch, self.router.open_call(batch)

    def end_call(self) -> None:
        """Keep the decisions of the model call that just ended. Nothing is copied to the host yet."""
        decisions = self.router.close_call()
        if decisions:
            self.calls.append(CallDecisions(self.step, *self._call, decisions))

    def _keys(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the conditions in a call's batch, the same in every run, however they are packed."""
        kinds, uuids = options.get("cond_or_uncond") or [0], options.get("uuids") or []
        if any(uuid not in self._names for uuid in uuids):
            for name, conditions in self.conditions().items():
                for i, condition in enumerate(conditions or ()):
                    self._names.setdefault(condition.get("uuid"), f"{name}.{i}")
        if len(uuids) == len(kinds) and all(uuid in self._names for uuid in uuids):
            return tuple(self._names[uuid] for uuid in uuids)
        # Callers with conditions of their own: positive ones come first in core's lists.
        names = ["positive" if kind == 0 else "negative" if kind == 1 else str(kind) for kind in kinds]
        return tuple(f"{name}.{names[:i].count(name)}" for i, name in enumerate(names))

    def results(self, header: dict[str, Any]) -> tuple[RoutingRecord, Plan]:
        """The record and the plan of all decisions: the only read-back from the device, once a run."""
        calls = read_back(self.calls)
        policy = self.router.policy
        if isinstance(policy, Replay):
            plan = policy.plan
        else:
            planned = calls if isinstance(policy, ScoredPolicy) else []
            plan = plan_of(planned, self.sigmas, header, None if self.frozen is None else self.frozen.weights)
        record = record_of(calls, self.sigmas, header)
        if self.frozen is not None:
            pairs = [self.frozen.weights[name] for name in record.layers]
            record.weights[:, :, self.frozen.step :] = torch.tensor(pairs, dtype=torch.float64).T[:, :, None]
        return replace(record, took=(time.perf_counter() - self.started, self.fusing)), plan

    def settle(self) -> dict[str, tuple[float, float]]:
        """By segment, the weights (subject, style) for the rest of the run.

        What was measured so far, on average over samples and conditions, is put to the policy for the middle of what is
        left: a policy that hands over in time would otherwise stay where it was.
        """
        policy = self.router.policy
        if isinstance(policy, Replay):
            assert policy.plan.frozen is not None
            return dict(zip(policy.plan.layers, policy.plan.frozen, strict=True))
        middle = round((self.step + self.steps - 1) / 2)
        at = self.router.context_of(middle, self.sigmas)
        ratios = log_ratios_of(read_back(self.calls))
        return {name: self.router.settled(name, ratio, at) for name, ratio in ratios.items()}
