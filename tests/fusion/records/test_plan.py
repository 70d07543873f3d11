"""Plans as JSON and as decisions."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.policies import StepContext
from lora_conductor.fusion.records import ReplayedCall
from lora_conductor.fusion.records.plan import Plan, PlanError, PlannedCall, loads

BASE = torch.zeros(2, 6, 8)


def plan(calls, layers=("a", "b"), steps=4):
    lora = {"name": "x", "role": "subject", "strength": 1.0, "sha256": "0" * 64}
    return Plan(
        (lora,),
        {"policy": "kl_soft"},
        {"floor": 0.1},
        tuple(float(steps - i) for i in range(steps + 1)),
        layers,
        tuple(calls),
    )


def weight(value, shape=(2, 1, 1)):
    return torch.full(shape, value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_float32_is_read_back_as_it_was(values):
    tensors = torch.tensor(values, dtype=torch.float32).reshape(2, 2, 1, 1)
    made = plan([PlannedCall(0, "positive.0", 0, ((tensors[0], 1.0), (tensors[1], 0.25)))])
    read = loads(made.dumps())
    for (a, _), (b, _) in zip(made.calls[0].weights, read.calls[0].weights, strict=True):
        assert torch.equal(a, b)
    assert read.calls[0].weights[1][1] == 0.25
    assert read.digest == made.digest and (read.loras, read.policy, read.sigmas) == (
        made.loras,
        made.policy,
        made.sigmas,
    )


def test_a_plan_finds_the_nearest_place():
    calls = [PlannedCall(s, c, e, ()) for s in range(4) for c in ("positive.0", "negative.0") for e in range(2)]
    made = plan(calls)

    def at(step, steps, condition, evaluation):
        found = made.planned(StepContext(step, steps), condition, evaluation)
        return found.step, found.condition, found.evaluation

    assert at(2, 4, "negative.0", 1) == (2, "negative.0", 1)
    assert at(7, 8, "positive.0", 0) == (3, "positive.0", 0)
    assert at(0, 8, "positive.0", 0) == (0, "positive.0", 0)
    assert at(1, 4, "positive.0", 5) == (1, "positive.0", 1)
    assert at(1, 4, "negative.3", 0) == (1, "negative.0", 0)
    assert at(1, 4, "middle.0", 0) == (1, "positive.0", 0)


def test_conditions_are_put_side_by_side():
    one = PlannedCall(0, "negative.0", 0, ((weight(0.1), weight(0.9)), (1.0, 0.0)))
    two = PlannedCall(0, "positive.0", 0, ((weight(0.2), weight(0.8)), (1.0, 0.0)))
    call = ReplayedCall(plan([one, two]), [one, two])
    subject, _ = call.weights("a", torch.zeros(4, 6, 8))
    assert subject[:, 0, 0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert call.weights("b", torch.zeros(4, 6, 8)) == (1.0, 0.0)
    assert call.weights("unknown", BASE) == (1.0, 1.0)


def test_other_batches_and_repeated_layers():
    calls = [PlannedCall(0, "positive.0", 0, ((weight(0.1), 1.0), (weight(0.7), 1.0)))]
    call = ReplayedCall(plan(calls, ("a", "a")), calls)
    found = [call.weights("a", torch.zeros(3, 6, 8))[0][:, 0, 0].tolist() for _ in range(3)]
    assert found == [pytest.approx([0.1] * 3), pytest.approx([0.7] * 3), pytest.approx([0.7] * 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(format="x"), "no routing plan"),
        (lambda p: p.update(version=99), "version 99"),
        (lambda p: p.pop("layers"), "cannot be read"),
        (lambda p: p["calls"][0]["weights"].pop(), "every layer"),
        (lambda p: p["calls"][0]["weights"][0].__setitem__(0, [1, 2]), "neither a number"),
        (lambda p: p["calls"][0]["weights"][0].__setitem__(0, "x"), "cannot be read"),
    ],
)
def test_what_is_no_plan_is_refused_with_a_reason(change, message):
    plain = json.loads(plan([PlannedCall(0, "positive.0", 0, ((1.0, 0.0), (1.0, 0.0)))]).dumps())
    change(plain)
    with pytest.raises(PlanError, match=message):
        loads(json.dumps(plain))
    with pytest.raises(PlanError, match="cannot be read"):
        loads("{")
