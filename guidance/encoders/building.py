"""Building a described network without being led to more memory or time than its file's weights could fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .base import EncoderFile, EncoderFileError

# Twice the file's weights, and room for what is built beside them and thrown away: a classifier, an empty text half.
SHARE, BESIDE = 2, 16 * 2**20  # elements
TRIED = 2**29  # elements; about that of ViT-L/14 with 336 pixels, and a second on a processor
CALLS_PER_WEIGHT, CALLS_BESIDE = 64, 20_000

# Where the size of what an operator makes stands among its arguments; of other operators it is seen afterwards.
_SIZES: Mapping[str, Callable[[tuple[Any, ...]], float]] = {
    **{
        f"aten::{name}": lambda arguments: math.prod(arguments[0])
        for name in ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided", "empty_permuted")
    },
    **{f"aten::new_{name}": lambda arguments: math.prod(arguments[1]) for name in ("empty", "zeros", "ones", "full")},
    "aten::arange": lambda arguments: max(
        (abs(part) for part in arguments if isinstance(part, (int, float))), default=0
    ),
    "aten::linspace": lambda arguments: arguments[2],
    "aten::_scaled_dot_product_flash_attention_for_cpu": lambda arguments: _attended(*arguments[:2]),
    "aten::_scaled_dot_product_attention_math": lambda arguments: _attended(*arguments[:2]),
    "aten::eye": lambda arguments: math.prod((arguments * 2)[:2]),
}


def _attended(query: torch.Tensor, key: torch.Tensor) -> int:
    return math.prod(query.shape[:-1]) * key.shape[-2]


class _TooLarge(Exception):
    """What is being built is larger than the file it is built for."""


class _Allowance(TorchDispatchMode):
    """Lets a thread's operators make no more than a number of elements, on whichever device, in a number of calls."""

    def __init__(self, elements: int, calls: int) -> None:
        super().__init__()
        self._elements = float(elements)
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._calls -= 1
        sizes = _SIZES.get(func.name().split(".")[0])
        if sizes is not None:
            self._take(sizes(args))
        result = func(*args, **(kwargs or {}))
        # An operator in place, or one that gives a view, makes nothing.
        if sizes is None and isinstance(result, torch.Tensor) and not func._schema.is_mutable and not func.is_view:
            self._take(result.numel())
        return result

    def _take(self, elements: float) -> None:
        self._elements -= elements
        if self._elements < 0 or self._calls < 0:
            raise _TooLarge


@contextmanager
def building(file: EncoderFile, what: str) -> Iterator[None]:
    """Within it a network for the file's weights is built. what: library and model, for messages.

    Raises EncoderFileError naming the file for whatever a library raises, and at once where the description asks for
    more than the file can hold.
    """
    held = sum(value.numel() for value in file.weights.values())
    try:
        with _Allowance(SHARE * held + BESIDE, CALLS_PER_WEIGHT * len(file.weights) + CALLS_BESIDE):
            yield
    except _TooLarge as error:
        raise EncoderFileError(
            f"{file.name}: {what}, as it is described, is far larger than the file, which holds {held} weights. Check "
            "model_name, or use another file."
        ) from error
    except (EncoderFileError, ImportError):
        raise
    except Exception as error:  # whatever a library's constructors raise for what they were not made for
        raise EncoderFileError(
            f"{file.name}: {what} cannot be built as it is described ({type(error).__name__}: {str(error)[:300]}). "
            "Check model_name, or use another file."
        ) from error


def check_reads(module: torch.nn.Module, size: tuple[int, int], file_name: str) -> None:
    """One picture of this size through a network that a file describes, as far as TRIED elements of work.

    Raises EncoderFileError naming the file if the network fails, or gives no embedding.
    """
    try:
        with torch.no_grad(), _Allowance(TRIED, TRIED):
            output = module(torch.zeros(1, 3, *size))
        if not isinstance(output, torch.Tensor) or output.ndim < 2 or len(output) != 1 or output.numel() == 0:
            raise ValueError("no embedding comes out")
    except _TooLarge:
        return
    except Exception as error:  # whatever the network raises
        raise EncoderFileError(
            f"{file_name}: its network, as it is described, does not read pictures of {size[0]} x {size[1]} pixels "
            f"({type(error).__name__}: {str(error)[:300]}). Use another file, or correct the description."
        ) from error


def usable(weights: Mapping[Any, Any], file_name: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name. Raises EncoderFileError for what is no plain tensor with its own memory."""
    kept = {key: value for key, value in weights.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    for key, value in kept.items():
        odd = value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized
        # A view that repeats its elements is small in the file and any size in memory.
        if odd or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise EncoderFileError(
                f"{file_name}: {key[:80]} is not stored as a plain tensor of real numbers. Use another file."
            )
    return kept
