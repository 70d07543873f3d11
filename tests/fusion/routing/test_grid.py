"""Token grids and the smoothing over them."""

import pytest
import torch

from lora_conductor.fusion.routing.grid import Picture, Place, blurred, grid_of


@pytest.mark.parametrize(
    ("tokens", "latent", "expected"),
    [
        (4096, (64, 64), (64, 64)),
        (1024, (64, 64), (32, 32)),
        (1024 + 77, (64, 64), None),
        (15 * 11, (30, 21), (15, 11)),
        (5 * 16 * 9, (5, 32, 18), (16, 9)),
        (8 * 30 * 52, (8, 60, 104), (30, 52)),
        (4 * 30 * 52, (4, 60, 104), (30, 52)),
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
    out = blurred(values, radius, Place(0, 1, 5, 7))
    reach = max(1, -int(-2 * radius // 1))
    y, x = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y, x[:, None] - x
    weights = torch.exp(-(dy**2 + dx**2) / (2 * radius**2)) * ((dy.abs() <= reach) & (dx.abs() <= reach))
    expected = values @ (weights / weights.sum(1, keepdim=True)).T
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_sequence_is_smoothed_along_itself():
    values = torch.zeros(1, 9)
    values[0, 4] = 1.0
    out = blurred(values, 1.0, Place(0, 1, 1, 9))
    assert out[0, 4] > out[0, 3] > out[0, 2] > 0 and torch.allclose(out, out.flip(1))
    assert torch.equal(blurred(values, 0.0, None), values)


def test_text_and_other_frames_stay_as_they_are():
    values = torch.zeros(1, 4 + 2 * 15 + 3)
    values[0, 4 + 7] = 1.0  # the middle of the first frame
    values[0, 3] = values[0, -1] = 5.0  # a word beside it, and one behind
    out = blurred(values, 1.0, Place(4, 2, 3, 5))
    assert torch.equal(out[:, :4], values[:, :4]) and torch.equal(out[:, -3:], values[:, -3:])
    assert out[0, 4:19].sum() > 0.5 and out[0, 4:19].max() < 1 and not out[0, 19:34].any()
    assert torch.equal(blurred(values, 1.0, None), values)


WAN = Picture((4, 60, 104), (1, 2, 2), text=512)
FLUX = Picture((64, 64), (1, 2, 2), "text", text=512)


@pytest.mark.parametrize(
    ("picture", "tokens", "expected"),
    [
        (WAN, 4 * 30 * 52, Place(0, 4, 30, 52)),
        (WAN, 512, None),
        (WAN, 6000, None),
        (Picture((9, 60, 104), (2, 2, 2)), 5 * 30 * 52, Place(0, 5, 30, 52)),
        (FLUX, 1024, Place(0, 1, 32, 32)),
        (FLUX, 512 + 1024, Place(512, 1, 32, 32)),
        (FLUX, 512, None),
        (Picture((64, 64), (1, 2, 2), "text", references=300), 512 + 1024 + 300, Place(512, 1, 32, 32)),
        (Picture((64, 64), (1, 2, 2), "text", references=300), 1024 + 300, Place(0, 1, 32, 32)),
        (Picture((8, 12), (1, 2, 2), "text", 32), 32 + 32, Place(32, 1, 4, 6)),
        (Picture((64, 64), (1, 2, 2), "picture", text=77), 1024 + 77, Place(0, 1, 32, 32)),
        (Picture((64, 64), (1, 2, 2), text=77), 1024 + 77, None),
        (Picture((56, 88), text=77), 77, None),
        (Picture((56, 88)), 28 * 44, Place(0, 1, 28, 44)),
        (Picture((100,), text=77), 101, Place(1, 1, 1, 100)),
        (Picture(), 100, None),
    ],
)
def test_the_place_of_tokens(picture, tokens, expected):
    assert picture.place(tokens) == expected


def test_a_convolution_knows_its_size():
    assert FLUX.place(60, (5, 3, 4)) == Place(0, 5, 3, 4) and FLUX.place(12, (3, 4)) == Place(0, 1, 3, 4)
