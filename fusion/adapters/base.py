"""What every kind of adapter shares: a delta that a file holds, and the module that adds it beside a layer.

Formulas are those of ComfyUI's merge (``comfy/weight_adapter``), its quirks included, so that one LoRA alone gives what
core's loader gives; where LyCORIS or a paper differ it is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .geometry import Geometry

# Of a weight: first output channel, one past the last, first input channel, number of input channels.
Slices = tuple[int, int, int, int]


class DeltaError(ValueError):
    """A delta's factors do not fit each other or the weight they are for."""


class NotFiniteError(DeltaError):
    """A factor or an alpha that a delta is made of is no finite number."""


class Delta(Protocol):
    """What one file does to one weight or a slice of it."""

    @property
    def out_start(self) -> int:
        """First output channel."""
        ...

    @property
    def out_stop(self) -> int:
        """One past the last."""
        ...

    @property
    def is_zero(self) -> bool:
        """Whether it surely changes nothing."""
        ...

    def bypass(self, outer: float, inner: float, dtype: torch.dtype) -> Bypass:
        """The module that computes it.

        Args:
            outer: the strength of the delta as a whole.
            inner: the strength inside it, for rotations, which core interpolates as well (1 elsewhere).
            dtype: to compute in.
        """
        ...


@dataclass(frozen=True)
class Place:
    """The slice of a weight ``[out, in, *kernel]`` that a delta is for."""

    shape: tuple[int, ...]
    out_start: int = 0
    in_start: int = 0

    @property
    def slices(self) -> Slices:
        return self.out_start, self.out_start + self.shape[0], self.in_start, self.shape[1]


@dataclass(frozen=True)
class PlacedDelta:
    """Base of the deltas that know their place by a :class:`Place`."""

    place: Place

    @property
    def out_start(self) -> int:
        return self.place.out_start

    @property
    def out_stop(self) -> int:
        return self.place.out_start + self.place.shape[0]

    @property
    def is_zero(self) -> bool:
        return False


def any_zero(scale: float, *factors: Tensor | None) -> bool:
    """Whether a product with these factors is zero."""
    return scale == 0 or any(factor is not None and peak(factor) == 0 for factor in factors)


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


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter of its own: files are read under inference mode, and autograd refuses tensors made there."""
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)


def like(factor: Tensor, x: Tensor) -> Tensor:
    """The factor where and as the activations are; a no-op when core has loaded it there already."""
    return factor.to(device=x.device, dtype=x.dtype)


def peak(tensor: Tensor) -> float:
    """The largest absolute value, in float32: NaN where the tensor holds one, 0 where it is empty.

    One pass over the memory, and a tenth of what ``isfinite().all()`` and ``any()`` take.
    """
    if not tensor.numel():
        return 0.0
    # float8 has neither abs nor max.
    plain = tensor if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.float()
    return float(plain.abs().max())


def finite(**tensors: Tensor | None) -> None:
    """Refuse NaN and infinity by name.

    Raises:
        NotFiniteError: a tensor holds one.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not math.isfinite(peak(tensor)):
            raise NotFiniteError(f"{name} holds NaN or infinite values")


def scale_of(alpha: float | None, rank: int) -> float:
    """``alpha / rank``, or 1 without an alpha.

    Raises:
        NotFiniteError: alpha is no finite number.
        DeltaError: the rank is 0.
    """
    if rank == 0:
        raise DeltaError("its rank is 0")
    scale = 1.0 if alpha is None else alpha / rank
    if not math.isfinite(scale):
        raise NotFiniteError(f"alpha {alpha} is not a finite number")
    return scale


def fits(condition: bool, what: str, shape: tuple[int, ...], *factors: Tensor | None) -> None:
    """Raises DeltaError with all shapes unless the condition holds."""
    if not condition:
        given = " and ".join(str(tuple(f.shape)) for f in factors if f is not None)
        raise DeltaError(f"{what} of shape {given} does not make a weight of shape {tuple(shape)}")
