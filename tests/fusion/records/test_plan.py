"""Plans as JSON and as decisions."""

import json
import math
import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.layers import Batch
from lora_conductor.fusion.policies import StepContext
from lora_conductor.fusion.records import CallDecisions, Decision, ReplayedCall, merged
from lora_conductor.fusion.records import plan as plans
from lora_conductor.fusion.records.plan import Plan, PlanError, PlannedCall, loads

BASE = torch.zeros(2, 6, 8)
BOTH = Batch(("negative.0", "positive.0"))


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


def version_1(made):
    """The plan as the first releases wrote it."""

    def plain(weight):
        if not isinstance(weight, torch.Tensor):
            return weight
        return [[[float(f"{value:.9g}") for value in row] for row in rows] for rows in weight.tolist()]

    read = json.loads(made.dumps())
    del read["layouts"]
    for call, planned in zip(read["calls"], made.calls, strict=True):
        call["weights"] = [pair and [plain(weight) for weight in pair] for pair in planned.weights]
    return {**read, "version": 1}


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_float32_is_read_back_as_it_was(values):
    tensors = torch.tensor(values, dtype=torch.float32).reshape(2, 2, 1, 1)
    made = plan([PlannedCall(0, "positive.0", 0, ((tensors[0], 1.0), (tensors[1], 0.1)))])
    read, old = loads(made.dumps()), loads(json.dumps(version_1(made)))
    for again in (read, old):
        for tensor, (a, _), (b, _) in zip(tensors, made.calls[0].weights, again.calls[0].weights, strict=True):
            assert torch.equal(a, tensor) and torch.equal(b, tensor)
        assert again.calls[0].weights[1][1] == 0.1
    assert old.dumps() == made.dumps()
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
    subject, _ = call.weights("a", torch.zeros(4, 6, 8), BOTH)
    assert subject[:, 0, 0].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert call.weights("b", torch.zeros(4, 6, 8), BOTH) == (1.0, 0.0)
    assert call.weights("unknown", BASE, BOTH) == (1.0, 1.0)


def test_other_batches_and_repeated_layers():
    calls = [PlannedCall(0, "positive.0", 0, ((weight(0.1), 1.0), (weight(0.7), 1.0)))]
    call = ReplayedCall(plan(calls, ("a", "a")), calls)
    found = [call.weights("a", torch.zeros(3, 6, 8), Batch())[0][:, 0, 0].tolist() for _ in range(3)]
    assert found == [pytest.approx([0.1] * 3), pytest.approx([0.7] * 3), pytest.approx([0.7] * 3)]


def test_a_call_of_one_latent_takes_that_latents_decisions():
    calls = [PlannedCall(0, "positive.0", 0, ((torch.tensor([0.1, 0.7]).reshape(2, 1, 1), 1.0), None))]
    for latent, wanted in ((0, 0.1), (1, 0.7), (2, 0.1)):
        batch = Batch(("positive.0",), rows=1, latents=3, only=latent)
        found = ReplayedCall(plan(calls), calls).weights("a", torch.zeros(1, 6, 8), batch)[0]
        assert found.flatten().tolist() == pytest.approx([wanted])


def test_what_was_decided_latent_by_latent_is_one_call_of_all():
    """An expert ("b") that the second latent sent nothing to stands at the mean of the others."""
    batch = Batch(("negative.0", "positive.0"), "positive.0", 4, 2)

    def both(score):
        return {"subject": score, "style": score}

    def call(index, latent, *names):
        value = float(10 * index + latent)
        made = [
            Decision(n, both(weight(value, (1, 1, 1))), {"subject": 1.0, "style": 0.5}, weight(value, (1, 1, 1)))
            for n in names
        ]
        return CallDecisions.of(3, batch.of_one(index, latent), (index,), made)

    calls = [call(0, 0, "a", "b", "a"), call(0, 1, "a", "a"), call(1, 0, "a", "b", "a"), call(1, 1, "a", "b", "a")]
    one = merged(calls, batch)
    assert (one.step, one.evaluations, one.layers) == (3, (0, 1), ("a", "b", "a"))
    first, second, _ = one.values()
    assert first[4].flatten().tolist() == [0.0, 1.0, 10.0, 11.0]
    assert second[2].flatten().tolist() == [0.0, 7.0, 10.0, 11.0]
    assert second[:2] == (1.0, 0.5)


def nested(depth):
    made = 1.0
    for _ in range(depth):
        made = [made]
    return made


FIRST = "calls[0].weights[0]"
CHANGES = {
    "it is no routing plan": lambda p: p.update(format="x"),
    "it has version 99, and": lambda p: p.update(version=99),
    "it has version '\\ud800', and": lambda p: p.update(version="\ud800"),
    "it has version a list of 0, and": lambda p: p.update(version=[]),
    "layers is missing": lambda p: p.pop("layers"),
    "layers must be a list, not 3": lambda p: p.update(layers=3),
    "layers[1] must be a text, not 7": lambda p: p["layers"].__setitem__(1, 7),
    "calls[0].weights must name every layer: 2, not 1": lambda p: p["calls"][0]["weights"].pop(),
    f"{FIRST}[0] is neither a number": lambda p: weight_of(p, [1, 2]),
    f"{FIRST}[0] is neither a number nor": lambda p: weight_of(p, [[[1.0], [1.0, 2.0]]]),
    f"{FIRST}[0] is neither": lambda p: weight_of(p, [[[]]]),
    f"{FIRST}[0] must be a number from -10000 to 10000, not a list of 1": lambda p: weight_of(p, nested(4)),
    f"{FIRST}[0] must be a number from -10000 to 10000, not 'x'": lambda p: weight_of(p, "x"),
    f"{FIRST}[0] must be a number from -10000 to 10000, not nan": lambda p: weight_of(p, [[[math.nan]]]),
    f"{FIRST}[0] must be a number from -10000 to 10000, not 1e+30": lambda p: weight_of(p, 1e30),
    f"{FIRST}[0] must be a number from -10000 to 10000, not a huge number": lambda p: weight_of(p, [[[10**400]]]),
    f"{FIRST}[0] must be a number from -10000 to 10000, not True": lambda p: weight_of(p, True),
    f"{FIRST} must have from 2 to 2 entries, and has 3": lambda p: p["calls"][0]["weights"][0].append(1.0),
    "calls[0].step must be a whole number": lambda p: p["calls"][0].update(step=-1),
    "calls[0].evaluation is missing": lambda p: p["calls"][0].pop("evaluation"),
    "calls[0].condition must be a text": lambda p: p["calls"][0].update(condition={}),
    "sigmas[1] must be a number from -1e+09 to 1e+09, not inf": lambda p: p["sigmas"].__setitem__(1, math.inf),
    "loras[0].role must be one of subject, style, not 'hat'": lambda p: p["loras"][0].update(role="hat"),
    "loras[0].sha256 must be a text, not a list of 0": lambda p: p["loras"][0].update(sha256=[]),
    "loras[0].strength must be a number": lambda p: p["loras"][0].update(strength=None),
    "roles must be subject, style, not a list of 2": lambda p: p["roles"].reverse(),
    "policy must be an object, not None": lambda p: p.update(policy=None),
    "policy.tokens must be a number": lambda p: p["policy"].update(tokens=math.nan),
    "refinement.floor.a[0]": lambda p: p["refinement"].update(floor={"a": [math.inf]}),
    "[0] is nested more than 8 deep": lambda p: p["refinement"].update(x=nested(20)),
    "frozen must have from 2 to 2 entries, and has 1": lambda p: p.update(frozen=[[1, 1]]),
    "frozen[1][0] must be a number": lambda p: p.update(frozen=[[1, 1], [None, 1]]),
    "layers must name those that were decided": lambda p: (p.update(layers=[]), p["calls"][0].update(weights=[])),
}


def weight_of(plain, value):
    plain["calls"][0]["weights"][0][0] = value


@pytest.mark.parametrize("message", CHANGES)
def test_what_is_no_plan_is_refused_by_the_path_of_what_is_wrong(message):
    plain = version_1(plan([PlannedCall(0, "positive.0", 0, ((1.0, 0.0), (1.0, 0.0)))]))
    CHANGES[message](plain)
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        loads(json.dumps(plain))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


PACKED = "calls[0].weights"
CHANGES_2 = {
    "layouts must be a list, not 3": lambda p: p.update(layouts=3),
    "layouts must name those of the calls": lambda p: p.update(layouts=[]),
    "layouts[0][0] must have from 2 to 2": lambda p: p["layouts"][0][0].pop(),
    "layouts[0][0][0] must be a whole number from 1 to 2": lambda p: p["layouts"][0][0].__setitem__(0, 10**9),
    "layouts[0][0][1][0] must have from 3 to 3": lambda p: p["layouts"][0][0][1].__setitem__(0, [1, 1]),
    "layouts[0][0][1][0][2] must be a whole number from 1": lambda p: p["layouts"][0][0][1][0].__setitem__(2, 0),
    "layouts[0] must have from 0 to 2 entries, and has 3": lambda p: p["layouts"][0].append([1, None]),
    "layouts[0] must be for every layer: 2, not 1": lambda p: p["layouts"][0].pop(),
    f"{PACKED}.layout must be a whole number from 0 to 0": lambda p: p["calls"][0]["weights"].update(layout=1),
    f"{PACKED}.values is missing": lambda p: p["calls"][0]["weights"].pop("values"),
    f"{PACKED}.values must be numbers as hexadecimal digits": lambda p: p["calls"][0]["weights"].update(values="*"),
    f"{PACKED}.values must be numbers as hexadecimal digits, not 7": lambda p: p["calls"][0]["weights"].update(
        values=7
    ),
    f"{PACKED}.values must have 4 numbers, and has 1": lambda p: p["calls"][0]["weights"].update(values="00" * 4),
    f"{PACKED}.numbers must have 1 numbers, and has 0": lambda p: p["calls"][0]["weights"].pop("numbers"),
    f"{PACKED} must be numbers from -10000": lambda p: p["calls"][0]["weights"].update(values="ff" * 16),
}


@pytest.mark.parametrize("message", CHANGES_2)
def test_packed_weights_that_are_none_are_refused_by_their_path(message):
    calls = [PlannedCall(0, "positive.0", 0, ((weight(0.1, (4, 1, 1)), 0.5), None))]
    plain = json.loads(plan(calls).dumps())
    assert loads(json.dumps(plain)).calls[0].weights[1] is None
    CHANGES_2[message](plain)
    with pytest.raises(PlanError, match=re.escape(message)):
        loads(json.dumps(plain))


def test_a_plan_of_sdxl_is_small_and_read_fast(record_property):
    """722 layers, 50 steps, two prompts, four pictures: 9.7 MB and two seconds before they were packed."""
    layers = tuple(f"diffusion_model.output_blocks.{i}.attn.to_q" for i in range(722))
    values = torch.rand(722, 2, 4, 1, 1)
    pairs = tuple((one[0], one[1]) for one in values)
    calls = [PlannedCall(s, c, 0, pairs) for s in range(50) for c in ("negative.0", "positive.0")]
    made = plan(calls, layers, 50)
    text = made.dumps()
    start = time.perf_counter()
    read = loads(text)
    took = time.perf_counter() - start
    record_property("MB", len(text) / 1e6)
    record_property("seconds to read", took)
    kept = sum(call.weights.values.numel() * 4 for call in read.calls)
    record_property("MB in memory", kept / 1e6)
    assert len(text) < 5e6 and kept < 2.5e6 and took < 0.5
    assert len({id(call.weights.layout) for call in read.calls}) == 1
    assert torch.equal(read.calls[99].weights[721][1], values[721, 1])


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "9" * 5000, "null", "[]", '"', b"\xff\xfe", "\ufeff{}", "\ud800", "1e999"]
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(PlanError, match=r"it cannot be read: it is no JSON|it is no routing plan"):
        loads(text)


def test_a_file_that_would_fill_the_memory_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(plans, "MOST_IN_MEMORY", 10_000)
    with pytest.raises(PlanError, match="it is too large: .* would take .* of memory"):
        loads("[" + "[]," * 1000 + "[]]")


def test_a_run_that_diverged_gives_no_plan():
    made = plan([PlannedCall(0, "positive.0", 0, ((1.0, 0.0), (weight(math.nan), 0.0)))])
    with pytest.raises(PlanError, match=re.escape("calls[0].weights[1] holds NaN")):
        made.dumps()


def test_a_name_of_a_file_that_no_encoding_knows_is_kept():
    made = plan([])
    made.loras[0]["name"] = "caf\udce9.safetensors"  # as Python lists a Latin-1 name on Linux
    assert loads(made.dumps()).loras == made.loras
