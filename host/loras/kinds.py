"""The kinds of adapter that core loads, one row each: how core lays them out, and what becomes of them here.

A row's functions get the adapter's ``weights``, the tuple in which core's class keeps what its loader read. Rows go by
the name of core's class, so that hosts without one are none the worse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...fusion.adapters import Delta, DeltaError, Place, scale_of
from ...fusion.adapters.glora import glora
from ...fusion.adapters.loha import loha
from ...fusion.adapters.lokr import lokr
from ...fusion.adapters.low_rank import lora
from ...fusion.adapters.rotations import boft, oft

# An adapter's, as core lays them out: tensors, an alpha that is a float or None, None for what the file lacks.
Weights = tuple[Any, ...]


class Unroutable(Exception):
    """A patch that core can apply but that cannot be routed; says why."""


def _as_is(weights: Weights) -> Weights:
    return weights


def _all_used(weights: Weights) -> Weights:
    return ()


@dataclass(frozen=True)
class Kind:
    """What one of core's adapter classes is here.

    Attributes:
        delta: the delta to a place from the weights, DoRA left aside. Raises DeltaError where nobody can apply them,
            Unroutable where core can.
        magnitude: which of the weights are DoRA's magnitudes.
        unused: those of the weights that core loads but does not apply.
        applicable: the weights in a form that core can apply on every version of torch.
        vectors: whether core applies it to weights of one dimension too.
        grouped: whether it can be routed on a grouped convolution, as its dense matrix.
        partial: whether it can be routed on a part of the weight's input channels.
        additive: whether what it adds is the same whatever the weight is; with DoRA it never is.
        dora_scale: which of the weights core's DoRA multiplies the delta by, though nothing else does.
    """

    delta: Callable[[Place, Weights], Delta]
    magnitude: int
    unused: Callable[[Weights], Weights] = _all_used
    applicable: Callable[[Weights], Weights] = _as_is
    vectors: bool = False
    grouped: bool = True
    partial: bool = True
    additive: bool = True
    dora_scale: int | None = None


def kind_of(adapter: Any) -> Kind | None:
    """The row of an adapter of core's; None for kinds that are not known here."""
    names = (parent.__name__ for parent in type(adapter).__mro__)
    return next((KINDS[name] for name in names if name in KINDS), None)


def _lora(place: Place, weights: Weights) -> Delta:
    up, down, alpha, mid, magnitude, reshape, *_ = weights
    if mid is not None and (mid.ndim != 4 or mid.shape[0] != mid.shape[1]):
        raise DeltaError(f"a Tucker core of shape {tuple(mid.shape)}: ComfyUI cannot apply it either")
    if reshape is None:
        return lora(place, up, down, mid, alpha)
    whole = isinstance(reshape, list) and all(isinstance(n, int) for n in reshape)
    larger = whole and len(reshape) == len(place.shape) and all(map(operator.ge, reshape, place.shape))
    if not larger or magnitude is not None:
        raise DeltaError(f"reshape_weight {reshape} does not extend a weight of shape {place.shape}")
    lora(Place(tuple(reshape)), up, down, mid, alpha)
    raise Unroutable("it changes the weight's shape")


def _loha(place: Place, weights: Weights) -> Delta:
    w1_a, w1_b, alpha, w2_a, w2_b, core1, core2, *_ = weights
    return loha(place, (w1_a, w1_b), (w2_a, w2_b), None if core1 is None else (core1, core2), alpha)


def _lokr(place: Place, weights: Weights) -> Delta:
    w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, core, *_ = weights
    first: Any = w1 if w1 is not None else (w1_a, w1_b)
    second: Any = w2 if w2 is not None else (w2_a, w2_b)
    if any(part is None for pair in (first, second) if isinstance(pair, tuple) for part in pair):
        raise DeltaError("LoKr factors are missing")
    return lokr(place, first, second, core, alpha)


def _lokr_unused(weights: Weights) -> Weights:
    w1, w2, _, w1_a, w1_b, w2_a, w2_b, core, *_ = weights
    return (*((w1_a, w1_b) if w1 is not None else ()), *((w2_a, w2_b, core) if w2 is not None else ()))


def _lokr_applicable(weights: Weights) -> Weights:
    """Tucker cores multiplied out.

    Core makes a transposed ``w2`` of them that ``torch.kron`` may refuse, and then drops the patch with a line in the
    log.
    """
    w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, core, *rest = weights
    if w2 is not None or core is None:
        return weights
    w1 = w1 if w1 is not None else w1_a.float() @ w1_b.float()
    w2 = torch.einsum("ijkl,jr,ip->prkl", core.float(), w2_b.float(), w2_a.float())
    # Core takes no alpha for whole matrices: it goes into one of them.
    w2 = w2.contiguous() * scale_of(alpha, w2_b.shape[0])
    return w1, w2, None, None, None, None, None, None, *rest


def _glora(place: Place, weights: Weights) -> Delta:
    a1, a2, b1, b2, alpha, *_ = weights
    return glora(place, a1, a2, b1, b2, alpha)


def _oft(place: Place, weights: Weights) -> Delta:
    blocks, _, alpha, *_ = weights
    return oft(place, blocks, alpha)


def _oft_unused(weights: Weights) -> Weights:
    """The rescaling of outputs."""
    return weights[1:2]


def _boft(place: Place, weights: Weights) -> Delta:
    blocks, rescale, alpha, *_ = weights
    if alpha is None:
        raise DeltaError("BOFT without alpha: ComfyUI cannot apply it either")
    return boft(place, blocks, rescale, alpha)


KINDS = {
    "LoRAAdapter": Kind(_lora, magnitude=4, vectors=True),
    "LoHaAdapter": Kind(_loha, magnitude=7),
    "LoKrAdapter": Kind(_lokr, magnitude=8, unused=_lokr_unused, applicable=_lokr_applicable),
    "GLoRAAdapter": Kind(_glora, magnitude=5, grouped=False, partial=False, additive=False),
    # Of rotations alpha is no scale but a constraint; core's DoRA takes it for one all the same.
    "OFTAdapter": Kind(_oft, 3, _oft_unused, grouped=False, partial=False, additive=False, dora_scale=2),
    "BOFTAdapter": Kind(_boft, 3, grouped=False, partial=False, additive=False, dora_scale=2),
}
