"""Factors in another basis: the same product, as loud as its hidden features."""

import pytest
import torch

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
    turned, mixed = orthonormal(up, down)
    product = up.double() @ down.double()
    torch.testing.assert_close(turned.double() @ mixed.double(), product, rtol=1e-5, atol=1e-6 * product.abs().max())
    x = torch.randn(9, 30, generator=torch.Generator().manual_seed(1))
    loud = (product @ x.double()).square().sum()
    torch.testing.assert_close((mixed @ x).double().square().sum(), loud, rtol=1e-5, atol=0)


def test_what_is_no_number_stays_what_it_is():
    """A strength may make it so; eigenvalues of such matrices are an error."""
    up, down = torch.full((6, 3), float("inf")), torch.randn(3, 4)
    turned, mixed = orthonormal(up, down)
    assert turned is up and mixed is down


def test_nothing_stays_nothing():
    turned, mixed = orthonormal(torch.zeros(6, 3), torch.randn(3, 4))
    assert not (turned @ mixed).any() and bool(turned.isfinite().all() and mixed.isfinite().all())
