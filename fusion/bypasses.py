"""Deltas that run beside a layer instead of in it, one module per kind of adapter: those that know no base weight.

A bypass gives ``dW x`` for the layer's input. Its tensors are parameters, so that core moves them with the model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import Geometry


class Bypass(nn.Module):
    """What one delta adds to one slice of a layer's output.

    Attributes:
        start, stop: the slice of output channels.
        in_start, in_width: the slice of input channels.
        additive: whether ``dW`` is the same whatever the base weight is.
        needs_linear: whether :meth:`forward` wants the base output.
        needs_weight: whether :meth:`prepare` wants the base weight.
    """

    additive = True
    needs_linear = False
    needs_weight = False

    def __init__(self, start: int, stop: int, in_start: int, in_width: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.in_start, self.in_width = in_start, in_width

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        """``dW x`` as ``[batch, tokens, stop - start]``.

        Args:
            x: the layer's input.
            geometry: of the layer.
            linear: ``W x`` ``[batch, tokens, out]`` where ``needs_linear``, else None.
            facts: what :meth:`prepare` gave, where ``needs_weight``.
            layer: the BaseLayer, where ``needs_linear``.
        """
        raise NotImplementedError

    def prepare(self, weight: Tensor, dtype: torch.dtype) -> Any:
        """What depends on the base weight ``[out, in, *kernel]`` alone, float32; results in ``dtype``."""
        return None

    def dense(self, weight: Tensor | None = None) -> Tensor:
        """``dW`` ``[stop - start, in_width, *kernel]`` float32; the base weight is needed unless additive."""
        raise NotImplementedError

    def own_rows(self, weight: Tensor) -> Tensor:
        """The part of the base weight that the delta is for."""
        return weight[self.start : self.stop, self.in_start : self.in_start + self.in_width].float()


class LowRankBypass(Bypass):
    """``up (down x)``: the inside of a DoRA. A plain LoRA goes the faster way of ``FusedLayer``."""

    def __init__(self, up: Tensor, down: Tensor, slices: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.up, self.down = frozen(up.to(dtype)), frozen(down.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        x = geometry.narrow(x, self.in_start, self.in_width)
        return F.linear(geometry.tokens(geometry.project(x, like(self.down, x))), like(self.up, x))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        down = self.down.float()
        return (self.up.float() @ down.flatten(1)).reshape(self.up.shape[0], *down.shape[1:])


class DenseBypass(Bypass):
    """``dW x`` with the dense ``dW``: weight differences, and adapters whose rank is as large as the layer."""

    def __init__(self, delta: Tensor, slices: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        super().__init__(*slices)
        self.delta = frozen(delta.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        if geometry.groups == 1:
            x = geometry.narrow(x, self.in_start, self.in_width)
        return geometry.tokens(geometry.project(x, like(self.delta, x), geometry.groups))

    def dense(self, weight: Tensor | None = None) -> Tensor:
        return self.delta.float()


class KroneckerBypass(Bypass):
    """``(w1 kron w2) x`` without the product: ``w2`` on runs of the input, then ``w1`` across the runs (LoKr).

    Args:
        w1: ``[a, b]``.
        up: ``[c, rank]``, or None if ``w2`` is whole.
        down: ``[rank, d, *kernel]``, or the whole ``w2`` ``[c, d, *kernel]``.
    """

    def __init__(
        self, w1: Tensor, up: Tensor | None, down: Tensor, slices: tuple[int, int, int, int], dtype: torch.dtype
    ) -> None:
        super().__init__(*slices)
        self.w1, self.down = frozen(w1.to(dtype)), frozen(down.to(dtype))
        self.up = None if up is None else frozen(up.to(dtype))

    def forward(self, x: Tensor, geometry: Geometry, linear: Tensor | None, facts: Any, layer: Any) -> Tensor:
        x = geometry.narrow(x, self.in_start, self.in_width)
        w1, down = like(self.w1, x), like(self.down, x)
        runs = w1.shape[1]
        if geometry.is_conv:
            hidden = geometry.project(x.reshape(x.shape[0] * runs, -1, *x.shape[2:]), down)
            hidden = hidden.flatten(2).reshape(x.shape[0], runs, down.shape[0], -1).permute(0, 3, 1, 2)
        else:
            tokens = geometry.tokens(x)
            hidden = F.linear(tokens.reshape(*tokens.shape[:2], runs, -1), down)
        hidden = torch.matmul(w1, hidden)
        if self.up is not None:
            hidden = F.linear(hidden, like(self.up, x))
        return hidden.flatten(2)

    def dense(self, weight: Tensor | None = None) -> Tensor:
        w2 = self.down.float()
        if self.up is not None:
            w2 = (self.up.float() @ w2.flatten(1)).reshape(self.up.shape[0], *w2.shape[1:])
        return torch.kron(self.w1.float().reshape(*self.w1.shape, *[1] * (w2.ndim - 2)), w2)


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter of its own: files are read under inference mode, and autograd refuses tensors made there."""
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)


def like(factor: Tensor, x: Tensor) -> Tensor:
    """The factor where and as the activations are; a no-op when core has loaded it there already."""
    return factor.to(device=x.device, dtype=x.dtype)
