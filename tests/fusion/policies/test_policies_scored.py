"""Policies that look at features, against the formulas in their docstrings."""

import math

import pytest
import torch

from lora_conductor.fusion.layers import Pairing
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


def by_formula(policy, scores, lean, progress, strengths, presence, most):
    """Both weights of one layer, number by number."""
    unit = [score / strength**2 for score, strength in zip(scores, strengths, strict=True)]
    lead = -policy.subject_lead + (policy.subject_lead + policy.style_lead) * progress
    r = policy.evenness * math.log(unit[0] / unit[1]) + lead - lean
    gains = (min(most, 2 / (1 + math.exp(sign * r / 2))) for sign in (1, -1))
    return [1 + presence * (gain - 1) for gain in gains]


@pytest.mark.parametrize("emphasis", [1.0, 1.2, 2.5])
@pytest.mark.parametrize(("strengths", "presence"), [((1, 1), 1), ((0.5, 1), 0.5), ((-1, 0.2), 0.2), ((1.5, 1), 1)])
@pytest.mark.parametrize("step", [0, 4, 9])
def test_balanced_is_its_formula(step, strengths, presence, emphasis):
    policy, pairing = Balanced(evenness=0.7, subject_lead=0.5, style_lead=1.5), Pairing(strengths)
    context = StepContext(step, 10, emphasis=emphasis)
    subject, style = policy.weights(LOG_RATIO, 0.4, context, pairing)
    norms = torch.stack([SUBJECT.sqrt(), STYLE.sqrt(), SUBJECT.sqrt()], dim=1)
    pair = policy.pair(norms, 0.4, context, pairing)
    for i in range(3):
        scores = float(SUBJECT[i]), float(STYLE[i])
        wanted = by_formula(policy, scores, 0.4, step / 10, strengths, presence, emphasis)
        assert [float(subject[i]), float(style[i])] == pytest.approx(wanted, rel=1e-5)
        assert pair[i].tolist() == pytest.approx(wanted, rel=1e-5)


def test_without_presence_strengths_are_loudness_like_the_files():
    context = StepContext(3, 10, emphasis=2.5)
    found = Balanced(presence=False).weights(LOG_RATIO, 0.0, context, Pairing((0.3, 1.0), 9.0))
    for one, other in zip(found, Balanced().weights(LOG_RATIO, 0.0, context), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("away", [0.0, 3.0, 5.0, 8.0, 12.0, 40.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_lora_that_is_as_good_as_zero_leaves_the_other_what_it_is_alone(away, sign):
    """By the files' loudness; where that is not known, by what they do."""
    context, log_ratio = StepContext(9, 10, emphasis=2.5), torch.tensor([sign * away])
    told = Balanced().weights(log_ratio, 0.0, context, Pairing(loudness=sign * away))
    seen = Balanced().weights(log_ratio, 0.0, context, Pairing(loudness=None))
    assert [float(w) for w in told] == pytest.approx([float(w) for w in seen])
    if away <= 5:
        whole = Balanced().weights(log_ratio, 0.0, context)
        assert [float(w) for w in told] == pytest.approx([float(w) for w in whole])
    if away >= 12:
        assert [float(w) for w in told] == [1.0, 1.0]


@pytest.mark.parametrize("louder", [0.25, 1.0, 4.0])
def test_balanced_makes_both_equally_loud_when_nobody_leads(louder):
    """Energies after weighting, w^2 e, are equal at evenness 1, however strong one LoRA's file is."""
    policy = Balanced(subject_lead=0, style_lead=0)
    subject, style = policy.weights((SUBJECT * louder / STYLE).log(), 0.0, StepContext(3, 10, emphasis=2.5))
    torch.testing.assert_close(subject.square() * SUBJECT * louder, style.square() * STYLE, rtol=1e-4, atol=1e-9)


def test_balanced_hands_over_from_subject_to_style():
    shares = []
    for step in range(10):
        subject, style = Balanced().weights(torch.zeros(1), 0.0, StepContext(step, 10))
        shares.append(float(subject / (subject + style)))
    assert shares[0] > 0.5 > shares[-1] and shares == sorted(shares, reverse=True)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="emphasis"):
        Balanced(emphasis=0)
