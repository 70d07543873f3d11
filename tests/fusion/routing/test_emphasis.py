"""How often the LoRAs' effect counts, from the shares of the two passes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_conductor.fusion.layers import Batch, Pairing
from lora_conductor.fusion.policies import CRAFT, Balanced, KLSoft, StepContext
from lora_conductor.fusion.roles import ROLES
from lora_conductor.fusion.routing import Prepared, Refinement, Rules
from lora_conductor.fusion.routing.emphasis import ALL_BY, Emphasis, effective, negative_share, push

FEATURES = torch.zeros(4, 3, 2)


@given(cfg=st.floats(1.0, 30.0), emphasis=st.floats(0.05, 30.0))
def test_an_effect_counts_as_often_as_asked_for(cfg, emphasis):
    share, times = negative_share(emphasis, cfg), push(emphasis, cfg)
    # With the positive pass changed by 1, CFG gives negative + cfg (positive - negative).
    assert times * (share + cfg * (1 - share)) == pytest.approx(emphasis)
    assert 0 <= share <= 2 and times > 0
    if cfg == 1:
        assert (share, times) == (1, emphasis)
    elif emphasis >= min(cfg, ALL_BY) and emphasis > 1:
        assert share == 0 and times == pytest.approx(emphasis / cfg)
    elif emphasis >= 1:
        assert times <= 1 + 1e-9, "what guidance gives takes no weight"
    assert push(emphasis, 1 + 1e-9) == pytest.approx(push(emphasis, 1.0))


@given(cfg=st.floats(1.0, 30.0), emphasis=st.floats(1.0, 30.0), more=st.floats(1.0, 3.0))
def test_more_is_more_in_the_positive_pass_and_less_in_the_negative_one(cfg, emphasis, more):
    less, much = ((push(e, cfg), push(e, cfg) * negative_share(e, cfg)) for e in (emphasis, emphasis * more))
    assert much[0] - much[1] >= less[0] - less[1] - 1e-9
    assert effective(emphasis, cfg) == min(emphasis, cfg) <= effective(emphasis * more, cfg)


@pytest.mark.parametrize("cfg", [1.5, 2.5, 7.0])
@pytest.mark.parametrize("at", [1.0, ALL_BY])
def test_nothing_jumps(cfg, at):
    for of in (negative_share, push, effective):
        assert of(at - 1e-9, cfg) == pytest.approx(of(at + 1e-9, cfg), abs=1e-6)


@pytest.mark.parametrize("cfg", [1.0, 1.5, 2.5, 7.0, 30.0])
def test_a_policy_of_its_own_takes_weights_down_and_never_up(cfg):
    own, asked = Rules(Balanced()), Rules(Balanced(), Refinement(emphasis=4.0))
    assert own.push(cfg) == pytest.approx(min(1.0, 2.5 / cfg)) and own.counts(cfg) == pytest.approx(min(cfg, 2.5))
    assert asked.counts(cfg) == 4.0 and asked.push(cfg) == pytest.approx(4 / cfg)
    assert asked.cooler(cfg) == pytest.approx(3.0) and own.cooler(cfg) == pytest.approx(max(1.0, min(cfg, 2.5) - 1))
    assert Rules(CRAFT()).push(cfg) == 1 and Rules(KLSoft()).push(cfg) == 1
    faint = Rules(Balanced(emphasis=0.5))
    share, times = faint.negative_share(cfg), faint.push(cfg)
    assert times * (cfg - share * (cfg - 1)) == pytest.approx(faint.counts(cfg)) == pytest.approx(0.5)


def test_all_rows_are_pushed_the_negative_ones_beside_their_share():
    weights = {"subject": 2.0, "style": torch.full((4, 3, 1), 3.0)}
    both = Emphasis(Batch(("negative.0", "positive.0")), 0.25, 2.0)
    assert both.of(weights, ROLES, FEATURES)["subject"].flatten().tolist() == [1, 1, 4, 4]
    assert both.of_pair(torch.ones(4, 2))[:, 0].tolist() == [0.5, 0.5, 2, 2]
    assert both.pair_of({}, FEATURES)[:, 1].tolist() == [0.5, 0.5, 2, 2]
    one = Emphasis(Batch(("positive.0",)), 1.0, 1.5)
    assert one.of({}, ROLES, FEATURES) == dict.fromkeys(ROLES, 1.5)
    assert (one.of_pair(torch.ones(4, 2)) == 1.5).all()
    # Features that are not made of the prompts are no pass's.
    odd = torch.zeros(3, 1, 1)
    assert both.of({"subject": 1.0}, ("subject",), odd) == {"subject": 2.0}
    assert (both.of_pairs(torch.ones(1, 1, 2), odd) == 2).all()


def test_rows_of_the_negative_prompt_get_their_share():
    emphasis = Emphasis(Batch(("negative.0", "positive.0")), 0.25)
    weights = {"subject": 2.0, "style": torch.full((4, 3, 1), 3.0)}
    found = emphasis.of(weights, ("subject", "style"), FEATURES)
    assert found["subject"].flatten().tolist() == [0.5, 0.5, 2, 2]
    assert torch.equal(found["style"], torch.tensor([0.75, 0.75, 3, 3]).reshape(4, 1, 1).expand(4, 3, 1))
    assert weights["subject"] == 2.0 and (weights["style"] == 3).all()
    # A role without a weight is added whole; one that is off stays a plain 0, for which nothing is computed.
    assert emphasis.of({"style": 0.0}, ("subject", "style"), FEATURES)["style"] == 0.0
    assert emphasis.of({}, ("style",), FEATURES)["style"].flatten().tolist() == [0.25, 0.25, 1, 1]


@pytest.mark.parametrize("weights", [{"subject": 1.0, "style": 0.0}, {"subject": 0.3, "style": 1.4}, {}])
def test_numbers_are_one_tensor_for_all_layers(weights):
    emphasis = Emphasis(Batch(("negative.0", "positive.0")), 0.25)
    pair, apart = emphasis.pair_of(weights, FEATURES), emphasis.of(weights, ROLES, FEATURES)
    for i, role in enumerate(ROLES):
        assert pair[:, i].tolist() == pytest.approx((apart[role] * torch.ones(4, 1, 1)).flatten().tolist())
    assert pair is emphasis.pair_of(weights, FEATURES[:, :1]), "made once"
    assert emphasis.pair_of({"subject": torch.ones(4, 1, 1)}, FEATURES) is None
    for other in (Emphasis(emphasis.batch, 1.0), Emphasis(Batch(("negative.0",)), 0.25)):
        assert other.pair_of(weights, FEATURES) is None  # numbers they stay
    assert emphasis.pair_of(weights, FEATURES[:3]) is None


def test_a_call_of_one_prompt_needs_no_tensors():
    for key, wanted in (("negative.0", 0.25), ("positive.0", 1.0), ("text", 1.0), ("middle.0", 1.0)):
        assert Emphasis(Batch((key,)), 0.25).of({"subject": 1.0}, ("subject",), FEATURES) == {"subject": wanted}


def test_features_that_are_not_made_of_the_prompts_are_left_alone():
    emphasis = Emphasis(Batch(("negative.0", "positive.0")), 0.0)
    weights = {"subject": 1.0}
    for times in (1.0, 0.4):  # strong guidance multiplies what one pass alone has, and not what both have
        emphasis = Emphasis(emphasis.batch, 0.0, times)
        assert emphasis.of(weights, ("subject",), torch.zeros(3, 1, 1)) is weights
        pairs = torch.ones(1, 1, 2)
        assert emphasis.of_pairs(pairs, torch.zeros(3, 1, 1)) is pairs


def test_the_recommended_policy_adds_no_more_to_a_layer_than_counts_in_the_picture():
    steps = [StepContext(9, 10, emphasis=emphasis) for emphasis in (1, 1.2, 9)]
    late = [max(w.item() for w in Balanced().weights(torch.zeros(1), 0.0, step)) for step in steps]
    assert late == pytest.approx([1.0, 1.2, 1.5717], rel=1e-4)


def rules(*pairings):
    return Rules(Balanced(), prepared=Prepared(pairings={str(i): pairing for i, pairing in enumerate(pairings)}))


def test_its_emphasis_goes_as_far_as_both_loras_are_there():
    whole, half, gone = Pairing(), Pairing((0.5, 1.0)), Pairing(loudness=30.0)
    assert rules().asked_emphasis == rules(whole, whole).asked_emphasis == 2.5
    assert rules(half).asked_emphasis == 1.75 and rules(Pairing((0.5, 0.5))).asked_emphasis == 2.5
    assert rules(Pairing((1e-9, 1.0))).asked_emphasis == pytest.approx(1.0)
    # A layer that one of them hardly touches is as one that it does not have.
    assert rules(whole, gone).asked_emphasis == 2.5 and rules(gone, gone).asked_emphasis == 1.0
    assert rules(half, Pairing((0.5, 1.0), 11.9)).asked_emphasis == pytest.approx(1.75, abs=1e-3)
    assert rules(Pairing(loudness=11.9)).asked_emphasis == pytest.approx(1.0, abs=1e-2)
    fixed = replace(rules(half), refinement=Refinement(emphasis=2.0))
    assert fixed.asked_emphasis == replace(fixed, policy=KLSoft()).asked_emphasis == 2.0, "what a user sets stands"
