"""Burn: how colourful, hard and contrasty pictures are, to be held against pictures that nobody fused.

Pushing two LoRAs shows in five figures before it shows in any similarity: colours grow loud, edges hard, whites and
blacks full. None of them is good or bad by itself; what counts is their ratio to the same seed, drawn by the style
alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# By figure, about the smallest change that can be seen (one step of 8 bit, one unit of Lab, a hundredth of the pixels):
# added to both sides of a ratio, so that grey or flat pictures do not make it endless.
VISIBLE = {
    "chroma": 1.0,
    "clipped": 0.01,
    "contrast": 1 / 255,
    "gradient": 1 / 255**2,
    "colourfulness": 1.0,
}
FIGURES = tuple(VISIBLE)

# IEC 61966-2-1 (sRGB): linear RGB to CIE XYZ under D65; white is what (1, 1, 1) becomes.
XYZ_OF_RGB = (
    (0.4124, 0.3576, 0.1805),
    (0.2126, 0.7152, 0.0722),
    (0.0193, 0.1192, 0.9505),
)
LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709, of the coded values


def burn_of(images: Tensor) -> dict[str, Tensor]:
    """The five figures of each picture, by name, in the order of :data:`FIGURES`: [B, 3, H, W] in [0, 1] -> [B] each.

    chroma: mean over pixels of C* = sqrt(a*^2 + b*^2) in CIE 1976 L*a*b*.
    clipped: share of pixels with a channel that is 0 or 255 in 8 bit, 0 to 1.
    contrast: RMS contrast, the standard deviation of luma (E. Peli, J. Opt. Soc. Am. A 7, 2032, 1990).
    gradient: energy of the gradient, mean squared difference of luma of neighbours across plus down (M. Subbarao et
        al., Optical Engineering 32, 2824, 1993).
    colourfulness: M^(3) of D. Hasler and S. Suesstrunk, Proc. SPIE 5007, 87, 2003, on the scale 0 to 255.

    Values beyond 0 and 1 count as 0 and 1, as in a saved picture. float32 or better, on the images' device.
    """
    rgb = images.detach().to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)
    luma = _mixed(rgb, (LUMA,))[:, 0]
    across, down = luma.diff(dim=-1).square(), luma.diff(dim=-2).square()
    steps = (rgb * 255).round()
    return {
        "chroma": lab_of(rgb)[:, 1:].square().sum(1).sqrt().flatten(1).mean(1),
        "clipped": ((steps == 0) | (steps == 255)).any(1).flatten(1).to(rgb.dtype).mean(1),
        "contrast": luma.flatten(1).std(1, correction=0),
        "gradient": _mean(across) + _mean(down),
        "colourfulness": _colourfulness(rgb * 255),
    }


def lab_of(rgb: Tensor) -> Tensor:
    """CIE 1976 L*a*b* (CIE 15) under D65 of sRGB pictures: [B, 3, H, W] in [0, 1] -> [B, 3, H, W]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _mixed(linear, tuple(tuple(factor / sum(row) for factor in row) for row in XYZ_OF_RGB))
    edge = 6 / 29
    curved = torch.where(xyz > edge**3, xyz.clamp_min(edge**3) ** (1 / 3), xyz / (3 * edge**2) + 4 / 29)
    x, y, z = curved.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def burn_against(images: Tensor, anchors: Tensor) -> dict[str, Tensor]:
    """By figure, how many times an anchor's a picture's is: :func:`ratios` of the figures of both.

    images, anchors: [B, 3, H, W] in [0, 1], such as ours and the style alone at the same seeds; one anchor may stand
    for all. -> [B] each; 1 is no burn.
    """
    return ratios(burn_of(images), burn_of(anchors))


def ratios(figures: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(figure + v) / (anchor's + v) with v of :data:`VISIBLE`, by name; shapes that broadcast."""
    return {name: (figures[name] + least) / (anchors[name] + least) for name, least in VISIBLE.items()}


def _colourfulness(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.flatten(2).unbind(1)
    pairs = torch.stack([red - green, (red + green) / 2 - blue], 1)
    return pairs.var(2, correction=0).sum(1).sqrt() + 0.3 * pairs.mean(2).square().sum(1).sqrt()


def _mean(values: Tensor) -> Tensor:
    """[B, H, W] -> [B]; 0 of nothing, as pictures one pixel wide have no neighbours."""
    return values.flatten(1).mean(1) if values.numel() else values.new_zeros(len(values))


def _mixed(channels: Tensor, rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """A matrix on the channels: [B, 3, H, W] -> [B, rows, H, W]."""
    return torch.einsum("rc,bchw->brhw", channels.new_tensor(rows), channels)
