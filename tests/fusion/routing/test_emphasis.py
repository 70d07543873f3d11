"""How often the LoRAs' effect counts, from the shares of the two passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_conductor.fusion.layers import Batch
from lora_conductor.fusion.policies import Balanced, StepContext
from lora_conductor.fusion.routing.emphasis import Emphasis, effective, negative_share

FEATURES = torch.zeros(4, 3, 2)


@given(cfg=st.floats(1.0, 30.0), emphasis=st.floats(0.05, 30.0))
def test_an_effect_counts_as_often_as_asked_for_or_as_cfg_allows(cfg, emphasis):
    share = negative_share(emphasis, cfg)
    # With the positive pass changed by 1, CFG gives negative + cfg (positive - negative).
    counted = share + cfg * (1 - share)
    assert counted == pytest.approx(effective(emphasis, cfg), abs=1e-9)
    if cfg == 1:
        assert (share, counted) == (1, 1)
    elif emphasis > cfg:
        assert (share, counted) == (0, cfg)
    elif share < 2:
        assert counted == pytest.approx(emphasis)


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


def test_a_call_of_one_prompt_needs_no_tensors():
    for key, wanted in (("negative.0", 0.25), ("positive.0", 1.0), ("text", 1.0), ("middle.0", 1.0)):
        assert Emphasis(Batch((key,)), 0.25).of({"subject": 1.0}, ("subject",), FEATURES) == {"subject": wanted}


def test_features_that_are_not_made_of_the_prompts_are_left_alone():
    emphasis = Emphasis(Batch(("negative.0", "positive.0")), 0.0)
    weights = {"subject": 1.0}
    assert emphasis.of(weights, ("subject",), torch.zeros(3, 1, 1)) is weights


def test_the_recommended_policy_drives_less_where_cfg_helps():
    at_rest = [Balanced().weights(torch.zeros(1), -0.2, StepContext(1, 6, 0.0, e))[0].item() for e in (1, 1.75, 2.5, 9)]
    assert at_rest == pytest.approx([1.4, 1.2, 1.0, 1.0])
    assert Balanced(emphasis=1.0).weights(torch.zeros(1), -0.2, StepContext(1, 6))[0].item() == pytest.approx(1.4)
