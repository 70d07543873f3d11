"""A layer without LoRAs, known only by what it does.

Some adapters (DoRA, GLoRA, OFT) depend on the weight they adapt. Weights may be quantised, packed, offloaded or patched
on the fly, and only the layer itself knows how to read them; so its weight is measured as its answer to unit inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Bypass
from .geometry import Geometry

# Large against a bias, so that rounding weight + bias to low precision costs the weight little; within float8's range.
AMPLITUDE = 128.0
CHUNK = 512


class BaseLayer:
    """The layer's own forward, its bias and its weight.

    Args:
        forward: the layer without LoRAs.
        geometry: of the layer.
        memo: what has been measured; lives as long as the layer's weights do not change.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], geometry: Geometry, memo: dict[Any, Any]) -> None:
        self.forward = forward
        self.geometry = geometry
        self.memo = memo

    def without_bias(self, tokens: Tensor, like: Tensor) -> Tensor:
        """``W x``: the layer's output ``[batch, tokens, out]`` less its bias."""
        key = ("bias", like.device, like.dtype)
        if key not in self.memo:
            with torch.inference_mode(False), torch.no_grad():
                answer = self.geometry.tokens(self.forward(self._zeros(1, like)))
                self.memo[key] = answer[0, 0].clone()
        return tokens - self.memo[key]

    def facts(self, bypasses: Sequence[Bypass], like: Tensor) -> dict[int, Any]:
        """What each bypass wants to know of the weight, by its ``id``; measured at the first call."""
        keys = {id(b): (id(b), like.device, like.dtype) for b in bypasses if b.needs_weight}
        missing = [b for b in bypasses if b.needs_weight and keys[id(b)] not in self.memo]
        if missing:
            # Made outside inference mode: guidance runs autograd over these forwards later.
            with torch.inference_mode(False), torch.no_grad():
                weight = self.weight(like)
                for bypass in missing:
                    self.memo[keys[id(bypass)]] = bypass.prepare(weight, like.dtype)
        return {name: self.memo[key] for name, key in keys.items()}

    def weight(self, like: Tensor) -> Tensor:
        """The weight ``[out, in / groups, *kernel]``, float32, on the device of ``like``."""
        g = self.geometry
        weight = torch.empty(g.weight_shape, device=like.device)
        for start in range(0, weight.shape[1], CHUNK):
            stop = min(start + CHUNK, weight.shape[1])
            if g.is_conv:
                self._measure_taps(weight, start, stop, like)
            else:
                units = self._zeros(stop - start, like)
                units[0, :, start:stop].fill_diagonal_(AMPLITUDE)
                weight[:, start:stop] = self._answer(units)[0].T
        return weight

    def _answer(self, units: Tensor) -> Tensor:
        """The linear part of the answer, per unit of input: what is odd in the input."""
        return (self.forward(units).float() - self.forward(-units).float()) / (2 * AMPLITUDE)

    def _measure_taps(self, weight: Tensor, start: int, stop: int, like: Tensor) -> None:
        """All kernel taps of some input channels from the responses to single pixels.

        A pixel at position ``c`` meets tap ``t`` in the output ``q`` with ``q stride - padding + t dilation = c``. A
        stride hides taps from a pixel; as many neighbouring pixels as the stride is long see them all.
        """
        g = self.geometry
        left = [before for before, _ in g.pads()]
        for shift in itertools.product(*(range(s) for s in g.stride)):
            centre = [(k - 1) * d + e for k, d, e in zip(g.kernel, g.dilation, shift, strict=True)]
            images = self._zeros(stop - start, like)
            for group in range(g.groups):
                first = group * weight.shape[1] + start
                _at(images, centre)[:, first : first + stop - start].fill_diagonal_(AMPLITUDE)
            answer = self._answer(images)
            for tap in itertools.product(*(range(k) for k in g.kernel)):
                at = [c + p - t * d for c, p, t, d in zip(centre, left, tap, g.dilation, strict=True)]
                if all(a % s == 0 for a, s in zip(at, g.stride, strict=True)):
                    place = [a // s for a, s in zip(at, g.stride, strict=True)]
                    _at(weight, tap)[:, start:stop] = _at(answer, place).T

    def _zeros(self, count: int, like: Tensor) -> Tensor:
        """``count`` inputs: tokens of one sample, or images wide enough that no window sees a pixel and a border."""
        g = self.geometry
        if not g.is_conv:
            return torch.zeros(1, count, g.in_features, device=like.device, dtype=like.dtype)
        space = [2 * (k - 1) * d + s for k, d, s in zip(g.kernel, g.dilation, g.stride, strict=True)]
        return torch.zeros(count, g.in_features, *space, device=like.device, dtype=like.dtype)


def _at(features: Tensor, position: Sequence[int]) -> Tensor:
    """The view ``[a, b]`` of ``[a, b, *space]`` at one position."""
    for index in position:
        features = features.select(2, index)
    return features
