"""Scores against naive float64 computations of the same formulas, one token at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.policies.scores import SCORES, half_variance, kl_softmax, relative_energy, standardised_kl
from lora_conductor.fusion.policies.scores_of_pairs import OF_MOVED, scores_of_moved, scores_of_pair


def features(seed: int, size: float, batch: int = 2, tokens: int = 5, channels: int = 24):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(batch, tokens, channels, generator=generator) * 2
    return base, torch.randn(batch, tokens, channels, generator=generator) * size


def naive_kl(base: np.ndarray, delta: np.ndarray) -> float:
    """KL(softmax(base + delta) || softmax(base)) of one token, by the definition."""
    p = [math.exp(v) for v in base]
    q = [math.exp(v) for v in base + delta]
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return sum(qi * math.log(qi / pi) for qi, pi in zip(q, p, strict=True))


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_kl_of_a_faint_delta_is_not_lost_in_rounding(size):
    base, delta = features(3, size)
    exact = torch.distributions.kl.kl_divergence(
        torch.distributions.Categorical(logits=base.double() + delta.double()),
        torch.distributions.Categorical(logits=base.double()),
    ).mean(-1)
    torch.testing.assert_close(kl_softmax(base, delta).double(), exact, rtol=2e-5, atol=0)


def test_kl_of_an_overwhelming_delta_is_finite():
    """One channel takes the whole softmax: KL is then -log of its share before."""
    base, delta = torch.zeros(1, 1, 10), torch.zeros(1, 1, 10)
    delta[..., 3] = 500.0
    assert kl_softmax(base, delta).item() == pytest.approx(math.log(10), rel=1e-4)


def per_token(base, delta, function) -> list[float]:
    base, delta = base.double().numpy(), delta.double().numpy()
    return [
        float(np.mean([function(b, d) for b, d in zip(x, y, strict=True)])) for x, y in zip(base, delta, strict=True)
    ]


@given(st.integers(0, 2**16), st.sampled_from([0.01, 0.3, 2.0, 30.0]))
@settings(max_examples=30, deadline=None)
def test_kl_is_the_definition(seed, size):
    base, delta = features(seed, size)
    assert kl_softmax(base, delta).tolist() == pytest.approx(per_token(base, delta, naive_kl), rel=2e-3, abs=1e-6)


def test_standardised_kl_is_the_kl_of_standardised_features():
    base, delta = features(1, 0.5)

    def naive(b, d):
        return naive_kl((b - b.mean()) / b.std(), d / b.std())

    assert standardised_kl(base, delta).tolist() == pytest.approx(per_token(base, delta, naive), rel=1e-3)


def test_half_variance_is_the_kl_to_second_order():
    """Method notes: within about 1% while |delta| < 0.5 |base|."""
    base, delta = features(2, 0.2, tokens=64, channels=640)
    assert half_variance(base, delta).tolist() == pytest.approx(kl_softmax(base, delta).tolist(), rel=0.03)


def test_relative_energy():
    base, delta = features(3, 1.0)
    expected = [float((d.double() ** 2).sum() / (b.double() ** 2).sum()) for b, d in zip(base, delta, strict=True)]
    assert relative_energy(base, delta).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_per_sample_and_zero_without_a_delta(name):
    base, delta = features(4, 0.5, batch=3)
    together = SCORES[name](base, delta)
    apart = torch.cat([SCORES[name](base[i : i + 1], delta[i : i + 1]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32
    torch.testing.assert_close(together, apart)
    assert SCORES[name](base, torch.zeros_like(delta)).abs().max() < 1e-6


def of_both(name: str, base: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    """As a running model has it."""
    if name in OF_MOVED:
        asked, still = OF_MOVED[name], base[None].float()
        copies = [still] * asked.before, [still] * asked.after
        found, factor = scores_of_moved(name, torch.cat([*copies[0], base + deltas, *copies[1]]))
    else:
        found, factor = scores_of_pair(name, base, deltas)
    return found * factor


def log_shares(base: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.log_softmax(base + delta, -1), torch.log_softmax(base, -1)


def exact_kl(base, delta):
    q, p = log_shares(base, delta)
    return (q.exp() * (q - p)).sum(-1).mean(-1)


def exact_js(base, delta):
    q, p = log_shares(base, delta)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1).mean(-1)


def exact_cosine(base, delta):
    moved = base + delta
    return (1 - (moved * base).sum(-1) / (moved.norm(dim=-1) * base.norm(dim=-1))).mean(-1)


@pytest.mark.parametrize("massive", [0.0, 20.0, 1000.0], ids=lambda size: f"{size:g}")
@pytest.mark.parametrize("size", [1e-3, 1e-2, 1.0, 300.0])
@pytest.mark.parametrize(
    ("name", "exact"), [("kl", exact_kl), ("js", exact_js), ("cosine", exact_cosine)], ids=["kl", "js", "cosine"]
)
def test_scores_are_those_of_float64(name, exact, size, massive):
    """Of one role and of both at once, with a few huge activations, as FLUX has them, and without."""
    base, deltas = torch.randn(2, 64, 256) * 2, torch.randn(2, 2, 64, 256) * size
    base[..., 3] += massive
    wanted = torch.stack([exact(base.double(), delta.double()) for delta in deltas], dim=1)
    # 1e-8 is a tenth of what float32 tells apart next to 1.
    for found in (of_both(name, base, deltas), torch.stack([SCORES[name](base, d) for d in deltas], dim=1)):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=1e-8)


@pytest.mark.parametrize("name", OF_MOVED)
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_twins_tie(name, size):
    """Where one of two takes all."""
    base, delta = features(9, size, batch=3, tokens=64, channels=320)
    found = of_both(name, base, torch.stack([delta, delta]))
    assert torch.equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("size", [1e-3, 0.3, 30.0, 300.0])
def test_scores_of_both_roles_at_once_are_the_scores_one_by_one(name, size):
    base, subject = features(7, size, batch=3)
    style = features(8, 0.5 * size, batch=3)[1]
    found = of_both(name, base, torch.stack([subject, style]))
    expected = torch.stack([SCORES[name](base, delta) for delta in (subject, style)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_quadratic_in_strength_when_small(name):
    base, delta = features(5, 0.05, channels=256)
    ratio = SCORES[name](base, 0.5 * delta) / SCORES[name](base, delta)
    assert ratio.tolist() == pytest.approx([0.25, 0.25], rel=0.05)


def test_bf16_features_are_scored_in_float32():
    base, delta = features(6, 0.3, channels=256)
    low = kl_softmax(base.bfloat16(), delta.bfloat16())
    assert low.dtype == torch.float32
    assert low.tolist() == pytest.approx(kl_softmax(base, delta).tolist(), rel=0.05)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_the_variance_of_a_pair_is_that_of_float64(size):
    """Under a softmax with a few huge activations, as FLUX has them, and however faint the deltas are."""
    base, deltas = torch.randn(2, 64, 256) * 3, torch.randn(2, 2, 64, 256) * size
    base[..., 3] += 20
    p, exact = torch.softmax(base.double(), -1), deltas.double()
    centred = exact - (p * exact).sum(-1, keepdim=True)
    wanted = (p * centred.square()).sum(-1).mean(-1).T / 2
    found, factor = scores_of_pair("half_variance", base, deltas)
    torch.testing.assert_close((found * factor).double(), wanted, rtol=5e-5, atol=0)
