"""The shape of a layer: how it maps its input to its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """How a layer maps its input to its output: a linear (``kernel`` empty) or a 1-3 dimensional convolution."""

    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    groups: int = 1

    @property
    def is_conv(self) -> bool:
        return bool(self.kernel)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``[out, in / groups, *kernel]``."""
        return (self.out_features, self.in_features // self.groups, *self.kernel)

    def project(self, x: Tensor, weight: Tensor, groups: int = 1, bias: Tensor | None = None) -> Tensor:
        """What a layer of this geometry, but of any widths, does with another weight.

        Args:
            x: ``[..., in]``, or ``[batch, in, *space]`` for a convolution.
            weight: ``[out, in / groups, *kernel]``.
            bias: ``[out]``.
        """
        if not self.is_conv:
            return F.linear(x, weight, bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, [p for pair in reversed(self.pads()) for p in pair], mode=self.padding_mode)
            padding = (0,) * len(self.kernel)
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        return conv(x, weight, bias, self.stride, padding, self.dilation, groups)

    def pads(self) -> list[tuple[int, int]]:
        """How far a convolution pads its input before and after, by dimension."""
        if self.padding == "valid":
            return [(0, 0)] * len(self.kernel)
        if self.padding == "same":
            totals = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        assert not isinstance(self.padding, str)
        return [(p, p) for p in self.padding]

    def tokens(self, y: Tensor) -> Tensor:
        """Features as ``[batch, tokens, channels]``."""
        if self.is_conv:
            return y.flatten(2).transpose(1, 2)
        return y.reshape(y.shape[0] if y.ndim > 1 else 1, -1, y.shape[-1])

    def untoken(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Back to the shape of ``like``."""
        if self.is_conv:
            return tokens.transpose(1, 2).reshape(like.shape)
        return tokens.reshape(like.shape)

    def narrow(self, x: Tensor, start: int, width: int) -> Tensor:
        """A run of the channels of an input."""
        dim = 1 if self.is_conv else x.ndim - 1
        return x if x.shape[dim] == width else x.narrow(dim, start, width)
