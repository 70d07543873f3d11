"""Token grids and the smoothing over them."""

import pytest
import torch

from lora_conductor.fusion.routing.grid import blurred, grid_of


@pytest.mark.parametrize(
    ("tokens", "latent", "expected"),
    [
        (4096, (64, 64), (64, 64)),
        (1024, (64, 64), (32, 32)),
        (1024 + 77, (64, 64), None),
        (15 * 11, (30, 21), (15, 11)),
        (5 * 16 * 9, (5, 32, 18), (16, 9)),
        (77, (64, 64), None),
        (100, (100,), None),
    ],
)
def test_the_grid_of_a_latent(tokens, latent, expected):
    assert grid_of(tokens, latent) == expected


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.5])
def test_blur_is_a_weighted_mean_over_the_grid(radius):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 35, generator=generator)
    out = blurred(values, radius, (5, 7))
    reach = max(1, -int(-2 * radius // 1))
    y, x = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y, x[:, None] - x
    weights = torch.exp(-(dy**2 + dx**2) / (2 * radius**2)) * ((dy.abs() <= reach) & (dx.abs() <= reach))
    expected = values @ (weights / weights.sum(1, keepdim=True)).T
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_without_a_grid_neighbours_are_in_the_sequence():
    values = torch.zeros(1, 9)
    values[0, 4] = 1.0
    out = blurred(values, 1.0, None)
    assert out[0, 4] > out[0, 3] > out[0, 2] > 0 and torch.allclose(out, out.flip(1))
    assert torch.equal(blurred(values, 0.0, None), values)
