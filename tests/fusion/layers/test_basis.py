"""Factors in another basis: the same product, as loud as its hidden features."""

import pytest
import torch

from lora_conductor.fusion.adapters import Geometry, LowRankDelta
from lora_conductor.fusion.layers import Bases, FusedLayer
from lora_conductor.fusion.layers.basis import orthonormal


def factors(out, rank, *, lost=0, spread=1.0):
    """Factors whose last ``lost`` columns repeat others, each column ``spread`` times as large as the one before."""
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(out, rank, generator=generator) * spread ** torch.arange(rank)
    if lost:
        up[:, -lost:] = up[:, :lost]
    return up, torch.randn(rank, 9, generator=generator)


@pytest.mark.parametrize(
    "case",
    [
        {"out": 40, "rank": 8},
        {"out": 40, "rank": 8, "spread": 0.03},
        {"out": 40, "rank": 8, "lost": 2},
        {"out": 5, "rank": 8},
        {"out": 40, "rank": 1},
    ],
    ids=str,
)
def test_the_product_stays_and_hidden_features_are_as_loud(case):
    up, down = factors(**case)
    basis = orthonormal(up)
    turned, mixed = basis.turned, basis.down(down)
    product = up.double() @ down.double()
    torch.testing.assert_close(turned.double() @ mixed.double(), product, rtol=1e-5, atol=1e-6 * product.abs().max())
    x = torch.randn(9, 30, generator=torch.Generator().manual_seed(1))
    loud = (product @ x.double()).square().sum()
    torch.testing.assert_close((mixed @ x).double().square().sum(), loud, rtol=1e-5, atol=0)


def test_what_is_no_number_stays_what_it_is():
    """A strength may make it so; eigenvalues of such matrices are an error."""
    up, down = torch.full((6, 3), float("inf")), torch.randn(3, 4)
    basis = orthonormal(up)
    assert torch.equal(basis.turned, up) and torch.equal(basis.down(down), down)


def test_nothing_stays_nothing():
    basis = orthonormal(torch.zeros(6, 3))
    mixed = basis.down(torch.randn(3, 4))
    assert not (basis.turned @ mixed).any() and bool(basis.turned.isfinite().all() and mixed.isfinite().all())


def test_bases_asked_for_longest_ago_are_forgotten():
    ups = {name: torch.randn(10, 2) for name in "abc"}
    size, made = orthonormal(ups["a"]).size, []
    bases = Bases(2 * size)

    def ask(name):
        return bases.of(name, lambda: made.append(name) or orthonormal(ups[name]))

    for name in "abacab":  # c drives out b, and b then c
        torch.testing.assert_close(ask(name).turned @ ask(name).root, ups[name])
    assert "".join(made) == "abcb"


def test_a_basis_too_large_to_keep_is_not_kept():
    bases, made = Bases(8), []
    for _ in range(2):
        bases.of("a", lambda: made.append(1) or orthonormal(torch.randn(10, 2)))
    assert len(made) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("several", [False, True])
def test_a_layer_of_bases_met_before_is_the_layer_made_anew(several, dtype):
    """Whatever the strengths were then; bit for bit."""

    def delta(name, out, start=0):
        generator = torch.Generator().manual_seed(len(name) + out)
        down, up = torch.randn(3, 8, generator=generator), torch.randn(out, 3, generator=generator)
        return LowRankDelta(down, up, 0.7, start, origin=name)

    def layer(strengths, bases):
        deltas = [("subject", strengths[0], delta("one", 12)), ("style", strengths[1], delta("two", 4, 4))]
        if several:
            deltas.append(("subject", strengths[2], delta("three", 12)))
        return FusedLayer("l", Geometry(8, 12), deltas, dtype, bases=bases)

    bases = Bases(1 << 20)
    for strengths in ((1.0, 1.0, 1.0), (0.3, -1.5, 0.2), (0.3, 2.0, 0.2), (-2.0, 1.0, 1.0)):
        again, anew = layer(strengths, bases).state_dict(), layer(strengths, None).state_dict()
        assert again.keys() == anew.keys()
        for name, value in again.items():
            assert torch.equal(value, anew[name]), name


def test_files_of_another_content_have_bases_of_their_own():
    bases = Bases(1 << 20)
    layers = [
        FusedLayer(
            "l", Geometry(8, 12), [("subject", 1.0, LowRankDelta(torch.randn(3, 8), up, origin=origin))], bases=bases
        )
        for origin, up in (("one", torch.randn(12, 3)), ("two", torch.randn(12, 3)), (None, torch.randn(12, 3)))
    ]
    for layer in layers:
        (segment,) = layer.segments
        mine = layer.segment_deltas(segment)
        torch.testing.assert_close(layer.up(segment) @ layer.down.data, mine.dense("subject"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strengths", [(0.0,), (0.0, 0.5), (0.5, 0.0)])
def test_a_strength_of_nothing_adds_nothing(strengths):
    deltas = [LowRankDelta(torch.randn(3, 8), torch.randn(12, 3), origin=i) for i in range(len(strengths))]
    loras = [("subject", strength, delta) for strength, delta in zip(strengths, deltas, strict=True)]
    layer = FusedLayer("l", Geometry(8, 12), loras, bases=Bases(1 << 20))
    expected = sum(strength * delta.dense().float() for strength, delta in zip(strengths, deltas, strict=True))
    (segment,) = layer.segments
    torch.testing.assert_close(layer.up(segment) @ layer.down.data, expected, rtol=1e-5, atol=1e-5)
