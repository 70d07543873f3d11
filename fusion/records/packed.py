"""The weights of a call, packed: one tensor for all layers, views of it when they are asked for.

A run of SDXL decides some hundred thousand weights. As a tensor each they would take a hundred times their numbers.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..layers import Weight
from . import checks as check
from .checks import PlanError

Pair = tuple[Weight, Weight]
Shape = tuple[int, ...]  # of a weight [sample, token, head]; () for one number
Row = tuple[Shape, Shape] | None  # of a layer: both roles; None where it did not run
MOST_OF_A_SIDE = 2**24


class Layout:
    """Where the weights of each layer lie in a packed call. The same for many calls.

    Attributes:
        rows: shapes by layer.
        values, numbers: how many there are in tensors, and of weights that are one number.
    """

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self.rows = rows
        self.values = self.numbers = 0
        self.starts: list[tuple[int, int] | None] = []
        for row in rows:
            starts = []
            for shape in row or ():
                starts.append(self.values if shape else self.numbers)
                self.values += math.prod(shape) if shape else 0
                self.numbers += not shape
            self.starts.append((starts[0], starts[1]) if row else None)

    def plain(self) -> list[Any]:
        """As JSON: runs of layers that are alike, ``[count, null or [shape, shape]]``; 0 for a number's shape."""
        return [
            [len(list(alike)), None if row is None else [list(shape) if shape else 0 for shape in row]]
            for row, alike in groupby(self.rows)
        ]


@lru_cache(maxsize=64)
def layout_of(rows: tuple[Row, ...]) -> Layout:
    """The layout of layers of those shapes, the same object for the same ones."""
    return Layout(rows)


class Packed(Sequence[Any]):
    """Pairs ``(subject, style)`` by layer, None where it did not run; made when they are asked for."""

    __slots__ = ("layout", "numbers", "values")

    def __init__(self, layout: Layout, values: Tensor, numbers: array[float]) -> None:
        self.layout, self.values, self.numbers = layout, values, numbers

    def __len__(self) -> int:
        return len(self.layout.rows)

    def __getitem__(self, index: Any) -> Any:
        row, starts = self.layout.rows[index], self.layout.starts[index]
        if row is None or starts is None:
            return None
        return self._weight(row[0], starts[0]), self._weight(row[1], starts[1])

    def __iter__(self) -> Iterator[Pair | None]:
        return (self[i] for i in range(len(self)))

    def _weight(self, shape: Shape, start: int) -> Weight:
        if not shape:
            return self.numbers[start]
        return self.values[start : start + math.prod(shape)].view(shape)

    def within(self, most: float) -> bool:
        """Whether all weights lie in ``[-most, most]``, as NaN does not."""
        return bool((self.values.abs() <= most).all()) and all(abs(number) <= most for number in self.numbers)

    def plain(self, layout: int) -> dict[str, Any]:
        """As JSON: the number of its layout, float32 and float64 as hexadecimal digits, little end first."""
        plain: dict[str, Any] = {"layout": layout, "values": _text(array("f", self.values.numpy().tobytes()))}
        return plain | ({"numbers": _text(self.numbers)} if self.numbers else {})


def pack(pairs: Sequence[Pair | None]) -> Packed:
    """Weights on the host, float32 as they are; what is packed already is left so."""
    if isinstance(pairs, Packed):
        return pairs
    rows = tuple(None if pair is None else (_shape(pair[0]), _shape(pair[1])) for pair in pairs)
    weights = [weight for pair in pairs for weight in pair or ()]
    tensors = [weight.detach().float().flatten() for weight in weights if isinstance(weight, Tensor)]
    numbers = array("d", [float(weight) for weight in weights if not isinstance(weight, Tensor)])
    return Packed(layout_of(rows), torch.cat(tensors).clone() if tensors else torch.empty(0), numbers)


def _shape(weight: Weight) -> Shape:
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def read_layout(value: Any, where: str, layers: int) -> Layout:
    """A layout of so many layers from its JSON.

    Raises:
        PlanError: it is none, by the path of what is wrong.
    """
    rows: list[Row] = []
    for i, run in enumerate(check.items(value, where, layers)):
        count, row = check.items(run, f"{where}[{i}]", 2, 2)
        count = check.whole(count, f"{where}[{i}][0]", 1, layers - len(rows))
        shapes = None
        if row is not None:
            subject, style = check.items(row, f"{where}[{i}][1]", 2, 2)
            shapes = _read_shape(subject, f"{where}[{i}][1][0]"), _read_shape(style, f"{where}[{i}][1][1]")
        rows += [shapes] * count
    if len(rows) != layers:
        raise PlanError(f"{where} must be for every layer: {layers}, not {len(rows)}")
    return layout_of(tuple(rows))


def _read_shape(value: Any, where: str) -> Shape:
    if value == 0 and not isinstance(value, bool):
        return ()
    sides = check.items(value, where, 3, 3)
    return tuple(check.whole(side, f"{where}[{i}]", 1, MOST_OF_A_SIDE) for i, side in enumerate(sides))


def read_packed(value: dict[str, Any], layouts: Sequence[Layout], most: float, where: str) -> Packed:
    """The weights of a call from their JSON.

    Args:
        value: the JSON.
        layouts: of the file.
        most: what a weight may be.
        where: its path.

    Raises:
        PlanError: see :func:`read_layout`.
    """
    if not layouts:
        raise PlanError(f"layouts must name those of the calls, and is empty ({where})")
    layout = layouts[check.whole(check.entry(value, "layout", where), f"{where}.layout", 0, len(layouts) - 1)]
    values = _numbers("f", check.entry(value, "values", where), layout.values, f"{where}.values")
    numbers = _numbers("d", value.get("numbers", ""), layout.numbers, f"{where}.numbers")
    tensor = torch.frombuffer(values, dtype=torch.float32) if len(values) else torch.empty(0)
    packed = Packed(layout, tensor, numbers)
    if not packed.within(most):
        raise PlanError(f"{where} must be numbers from {-most:g} to {most:g}, and holds others")
    return packed


def _text(numbers: array[float]) -> str:
    return _little(numbers).tobytes().hex()


def _little(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _numbers(kind: str, value: Any, count: int, where: str) -> array[float]:
    numbers: array[float] = array(kind)
    try:
        if not isinstance(value, str):
            raise ValueError
        data = bytes.fromhex(value)
    except ValueError:
        raise PlanError(f"{where} must be numbers as hexadecimal digits, not {check.shown(value)}") from None
    if len(data) != count * numbers.itemsize:
        raise PlanError(f"{where} must have {count} numbers, and has {len(data) / numbers.itemsize:g}")
    numbers.frombytes(data)
    return _little(numbers)
