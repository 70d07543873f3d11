"""Figures of burn against the formulas in numpy's float64, and against what is known of plain pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_conductor.guidance.burn import FIGURES, VISIBLE, burn_against, burn_of, lab_of


def linear(code: float) -> float:
    return code / 12.92 if code <= 0.04045 else ((code + 0.055) / 1.055) ** 2.4


def lab(rgb: np.ndarray) -> np.ndarray:
    """Of one pixel, by the text of the standards."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratios = to_xyz @ [linear(code) for code in rgb] / to_xyz.sum(1)
    f = [t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29 for t in ratios]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def by_hand(picture: np.ndarray) -> dict[str, float]:
    """[H, W, 3] -> the figures, pixel by pixel."""
    picture = picture.clip(0, 1)
    height, width, _ = picture.shape
    pixels = [picture[y, x] for y in range(height) for x in range(width)]
    luma = picture @ [0.2126, 0.7152, 0.0722]
    right = [(luma[y, x + 1] - luma[y, x]) ** 2 for y in range(height) for x in range(width - 1)]
    below = [(luma[y + 1, x] - luma[y, x]) ** 2 for y in range(height - 1) for x in range(width)]
    red, green, blue = (255 * picture[..., i] for i in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    return {
        "chroma": float(np.mean([np.hypot(*lab(pixel)[1:]) for pixel in pixels])),
        "clipped": float(np.mean([min(pixel) < 0.5 / 255 or max(pixel) > 254.5 / 255 for pixel in pixels])),
        "contrast": float(np.sqrt(np.mean((luma - luma.mean()) ** 2))),
        "gradient": float(np.mean(right) + np.mean(below)),
        "colourfulness": float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())),
    }


def pictures() -> torch.Tensor:
    made = torch.rand(3, 3, 9, 13, dtype=torch.float64) * 1.3 - 0.15  # beyond both ends, too
    made[1] = made[1] * 0.1  # dark: the straight parts of both curves
    return made


def test_every_figure_is_its_formula() -> None:
    images = pictures()
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        found = burn_of(images.to(dtype))
        assert tuple(found) == FIGURES == tuple(VISIBLE)
        for index, image in enumerate(images):
            expected = by_hand(image.movedim(0, -1).numpy())
            assert {name: float(values[index]) for name, values in found.items()} == pytest.approx(
                expected, rel=tolerance, abs=tolerance
            )


def test_ratios_are_of_each_picture_and_its_anchor() -> None:
    images, anchors = pictures(), pictures()
    whole, one = burn_against(images, anchors), burn_against(images, anchors[:1])
    for index in range(3):
        mine, other, first = (by_hand(t.movedim(0, -1).numpy()) for t in (images[index], anchors[index], anchors[0]))
        for name, least in VISIBLE.items():
            assert float(whole[name][index]) == pytest.approx((mine[name] + least) / (other[name] + least), rel=1e-9)
            assert float(one[name][index]) == pytest.approx((mine[name] + least) / (first[name] + least), rel=1e-9)


def test_known_colours() -> None:
    """Published values of the sRGB primaries under D65; made with more digits of the matrix than the standard has."""
    red, blue, white = ([1.0, 0, 0], [0, 0, 1.0], [1.0, 1, 1])
    found = lab_of(torch.tensor([red, blue, white], dtype=torch.float64)[..., None, None])[..., 0, 0]
    expected = torch.tensor([[53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [100, 0, 0]], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=0.05)


def test_what_burns_a_picture_raises_its_figures() -> None:
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), size=(48, 48), mode="bilinear") * 0.6 + 0.2
    burnt = (picture - 0.5) * 2.5 + 0.5
    assert all(float(ratio) > 1.3 for ratio in burn_against(burnt, picture).values())
    assert all(float(ratio) == 1.0 for ratio in burn_against(picture, picture).values())


def test_flat_grey_and_tiny_pictures_have_finite_figures() -> None:
    grey = torch.full((1, 3, 1, 1), 0.5)
    assert {name: round(float(value), 3) for name, value in burn_of(grey).items()} == dict.fromkeys(FIGURES, 0.0)
    for ratio in burn_against(torch.rand(1, 3, 4, 4), grey).values():
        assert torch.isfinite(ratio).all()
    assert all(value.dtype == torch.float32 for value in burn_of(torch.rand(1, 3, 4, 4).half()).values())
