"""What a file keeps of a run's decisions and what it averages away, against dense float64 matrices."""

import pytest
import torch

from lora_conductor.fusion.averaging import NEGATIVE, PICTURES, PLACES, STEPS, Losses, kept_of
from lora_conductor.fusion.layers import SegmentDeltas
from lora_conductor.fusion.records import Plan, PlannedCall, RoutingRecord
from lora_conductor.fusion.roles import ROLES

LAYERS = ("a", "b")
STEP_COUNT = 3


def run(shape=(2, 4, 3), steps=STEP_COUNT, planned=STEP_COUNT):
    """A record of noise, a plan of two conditions with weights of that shape, and the positive ones as they are."""
    weights = {
        condition: torch.rand(planned, len(LAYERS), 2, *shape) + (condition == "negative.0")
        for condition in ("positive.0", "negative.0")
    }
    calls = tuple(
        PlannedCall(step, condition, 0, tuple((pair[0], pair[1]) for pair in values[step]))
        for condition, values in weights.items()
        for step in range(planned)
    )
    record = torch.rand(2, len(LAYERS), steps).double()
    sigmas = tuple(float(s) for s in range(steps, -1, -1))
    made = RoutingRecord({}, (), {}, sigmas, LAYERS, record, record)
    return made, Plan((), {}, {}, sigmas, LAYERS, calls), weights


def deltas(name):
    down = {role: torch.randn(3, 5) for role in ROLES}
    return SegmentDeltas(name, down, {role: torch.randn(6, 3) for role in ROLES})


def test_the_positive_passes_alone_are_kept():
    record, plan, weights = run()
    kept = kept_of(record, plan)
    assert kept.positive_alone
    truth = weights["positive.0"].double().mean((-3, -2, -1)).permute(2, 1, 0)
    assert torch.allclose(kept.weights, truth)
    assert torch.allclose(kept.negative, weights["negative.0"].double().mean((-3, -2, -1)).permute(2, 1, 0))


def test_steps_that_the_plan_does_not_have_are_the_record_s():
    record, plan, weights = run(planned=2)
    kept = kept_of(record, plan)
    assert torch.equal(kept.weights[..., 2], record.weights[..., 2]) and kept.positive_alone
    assert not torch.allclose(kept.weights[..., 1], record.weights[..., 1])


@pytest.mark.parametrize("why", ["no plan", "no calls", "another run's"])
def test_without_a_plan_of_the_run_all_passes_are_kept(why):
    record, plan, _ = run()
    if why == "no calls":
        plan = Plan((), {}, {}, plan.sigmas, LAYERS, ())
    elif why == "another run's":
        record, _, _ = run(steps=5)
    kept = kept_of(record, None if why == "no plan" else plan)
    assert torch.equal(kept.weights, record.weights) and not kept.positive_alone and kept.negative is None


@pytest.mark.parametrize("step", [None, 1])
def test_losses_are_those_of_dense_matrices(step):
    record, plan, weights = run()
    kept = kept_of(record, plan)
    losses = Losses(kept, step)
    energy, lost = 0.0, dict.fromkeys((STEPS, PICTURES, PLACES, NEGATIVE), 0.0)
    apart = torch.zeros(STEP_COUNT).double()
    of_step = torch.zeros(STEP_COUNT).double()
    for i, name in enumerate(LAYERS):
        segment = deltas(name)
        losses.add(segment)
        whole = [segment.up[role].double() @ segment.down[role].double() for role in ROLES]

        def matrices(values, whole=whole):
            """``[..., out, in]`` of weights ``[2, ...]``."""
            return sum(w.double()[..., None, None] * d for w, d in zip(values, whole, strict=True))

        positive = weights["positive.0"][:, i].movedim(1, 0)  # [role, step, sample, token, head]
        each, samples = matrices(positive), matrices(positive.mean((-2, -1)))
        steps, negative = matrices(kept.weights[:, i]), matrices(weights["negative.0"][:, i].mean((-3, -2, -1)).T)
        written = steps.mean(0) if step is None else steps[step]
        square = {STEPS: steps - written, PICTURES: samples - steps[:, None], NEGATIVE: negative - steps}
        square[PLACES] = each - samples[:, :, None, None]
        for part, values in square.items():
            lost[part] += float(values.square().sum((-2, -1)).mean())
        energy += float(each.square().sum((-2, -1)).mean())
        apart += (steps - written).square().sum((-2, -1))
        of_step += steps.square().sum((-2, -1))
    assert losses.shares == pytest.approx({part: value / energy for part, value in lost.items()}, rel=1e-5)
    assert losses.by_step == pytest.approx((apart / of_step).tolist(), rel=1e-6)


def test_a_segment_of_one_role_or_unknown_counts_for_nothing():
    record, plan, _ = run()
    losses = Losses(kept_of(record, plan), None)
    losses.add(deltas("elsewhere"))
    alone = deltas("a")
    losses.add(SegmentDeltas("a", {"style": alone.down["style"]}, {"style": alone.up["style"]}))
    assert losses.shares == {}
