"""Policies that look at features, against the formulas in their docstrings."""

import math

import pytest
import torch

from lora_conductor.fusion.policies import SCORES, Balanced, Cosine, Energy, JensenShannon, Paper, StepContext

SUBJECT, STYLE = torch.tensor([0.2, 3.0, 1e-4]), torch.tensor([0.1, 3.0, 0.5])
LOG_RATIO = (SUBJECT / STYLE).log()


@pytest.mark.parametrize("policy", [Paper(), JensenShannon(), Cosine(), Energy()])
def test_hard_policies_give_everything_to_the_larger_score_and_ties_to_the_subject(policy):
    subject, style = policy.weights(LOG_RATIO, 0.0, StepContext(0, 10))
    assert subject.tolist() == [1, 1, 0] and style.tolist() == [0, 0, 1]


def test_hard_policies_look_at_their_own_score():
    names = [SCORES[policy.score].__name__ for policy in (Paper(), JensenShannon(), Cosine(), Energy())]
    assert names == ["kl_softmax", "jensen_shannon", "cosine_distance", "relative_energy"]


def test_hard_policies_follow_a_preference_that_outweighs_the_scores():
    assert Paper().weights(LOG_RATIO, -1.0, StepContext(0, 10))[0].tolist() == [0, 0, 0]
    assert Paper().weights(LOG_RATIO, 9.0, StepContext(0, 10))[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", [0, 4, 9])
def test_balanced_is_its_formula(step):
    policy = Balanced(evenness=0.7, subject_lead=0.5, style_lead=1.5, drive=1.1)
    subject, style = policy.weights(LOG_RATIO, 0.4, StepContext(step, 10))
    for i in range(3):
        ratio = math.log(float(SUBJECT[i]) / float(STYLE[i]))
        r = 0.7 * ratio + (-0.5 + 2.0 * step / 9) - 0.4
        assert float(style[i]) == pytest.approx(2.2 / (1 + math.exp(-r / 2)), rel=1e-5)
        assert float(subject[i]) == pytest.approx(2.2 / (1 + math.exp(r / 2)), rel=1e-5)


@pytest.mark.parametrize("louder", [0.25, 1.0, 4.0])
def test_balanced_makes_both_equally_loud_when_nobody_leads(louder):
    """Energies after weighting, w^2 e, are equal at evenness 1, however strong one LoRA's file is."""
    policy = Balanced(subject_lead=0, style_lead=0)
    subject, style = policy.weights((SUBJECT * louder / STYLE).log(), 0.0, StepContext(3, 10))
    torch.testing.assert_close(subject.square() * SUBJECT * louder, style.square() * STYLE, rtol=1e-4, atol=1e-9)


def test_balanced_hands_over_from_subject_to_style():
    shares = []
    for step in range(10):
        subject, style = Balanced().weights(torch.zeros(1), 0.0, StepContext(step, 10))
        shares.append(float(subject / (subject + style)))
    assert shares[0] > 0.5 > shares[-1] and shares == sorted(shares, reverse=True)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="drive"):
        Balanced(drive=0)
