"""Finished cells of a grid that was stopped: the same grid, asked for again, goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from comfy.model_patcher import ModelPatcher

Place = TypeVar("Place")
Made = TypeVar("Made")


class Unfinished(Generic[Place, Made]):
    """By model, what was made of the last grid that was stopped, as long as the model lives.

    What core hands a node anew from its cache are the same objects: large inputs are compared by identity.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[ModelPatcher, tuple[tuple[Any, ...], dict[Place, Made]]] = WeakKeyDictionary()

    def take(self, model: ModelPatcher, asked: Sequence[Any]) -> dict[Place, Made]:
        """What was made of a grid of those inputs, which is forgotten here; nothing if the last one had others."""
        before, made = self._kept.pop(model, ((), {}))
        return made if len(before) == len(asked) and all(map(_same, before, asked)) else {}

    def keep(self, model: ModelPatcher, asked: Sequence[Any], made: dict[Place, Made]) -> None:
        """Keep it until it is asked for again, or another grid is of that model."""
        self._kept[model] = tuple(asked), made


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | float | str | tuple) and type(one) is type(other) and one == other)
