"""Routing plans, as `LoadRoutingPlan` reads them and a router plays them."""

from __future__ import annotations

import json
from typing import Any

import torch

from lora_conductor.fusion.layers import Batch
from lora_conductor.fusion.policies import StepContext
from lora_conductor.fusion.records.plan import PlanError, loads
from lora_conductor.fusion.records.replay import Replay, ReplayedCall
from lora_conductor.fusion.routing.planned import planned

from .. import mutations
from ..cases import Parser


def _plan(**changes: Any) -> bytes:
    loras = [{"name": f"{r}.safetensors", "role": r, "strength": 1.0, "sha256": "0" * 64} for r in ("subject", "style")]
    one, heads = [[[1.0]], [[0.25]]], [[[0.75, 0.125]]]
    weights = [[0.5, 1.0], [one, one], None, [heads, heads]]
    call = {"step": 0, "condition": "positive.0", "evaluation": 0, "weights": weights}
    calls = [call, call | {"condition": "negative.0"}, call | {"step": 1, "evaluation": 1}]
    plan = {
        "format": "lora-conductor-plan",
        "version": 1,
        "loras": loras,
        "policy": {"policy": "kl_soft", "tokens": 64},
    }
    plan |= {"refinement": {"floor": 0.1}, "sigmas": [1.0, 0.5, 0.0], "roles": ["subject", "style"]}
    plan |= {"layers": ["a", "b", "c", "b"], "calls": calls, "frozen": None}
    return json.dumps(plan | changes, separators=(",", ":")).encode()


def _plans() -> list[bytes]:
    frozen = {"frozen": [[1.0, 0.5]] * 4, "refinement": {"freeze_after": 1, "granularity": "head"}}
    settled = {"calls": [], "layers": [], "sigmas": []}
    from lora_conductor.fusion.records.plan import loads

    return [
        _plan(),
        _plan(**frozen),
        _plan(policy={"policy": "balanced", "emphasis": 2.5}),
        _plan(**settled, policy={"policy": "dare", "density": 0.5, "seed": 3}),
        _plan(**settled, policy={"policy": "k_lora", "variant": "s*", "alpha": 1.5}),
        loads(_plan()).dumps().encode(),  # as version 2 has it
        loads(_plan(**frozen)).dumps().encode(),
    ]


def _read_plan(data: bytes) -> None:
    plan = loads(data)
    policy, _ = planned(plan)
    assert loads(plan.dumps()).dumps() == plan.dumps()
    json.dumps(policy.settings(), ensure_ascii=True)
    if not isinstance(policy, Replay) or policy.own_emphasis < 0:
        return
    if any(len(heads - {1}) > 1 for heads in plan.heads.values()):
        raise PlanError("refused where it meets a model")
    batch = Batch(("negative.0", "positive.0"), rows=4)
    for step, steps in ((0, 2), (1, 2), (5, 9)):
        at = StepContext(step, steps)
        call = ReplayedCall(plan, [plan.planned(at, key, 1) for key in ("negative.0", "positive.0")])
        for layer in (*plan.layers[:20], "unknown"):
            for weight in call.weights(layer, torch.zeros(4, 3, 8), batch):
                assert bool(torch.as_tensor(weight).isfinite().all())


PLANS = Parser(_plans, _read_plan, (PlanError,), (mutations.bytes_of, mutations.json_of), quick=1000)
