"""Pictures of a grid, one by one; those of a grid that was stopped are there when it is asked for again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ..core import logger

Place = TypeVar("Place", bound=tuple[Any, ...])
Made = TypeVar("Made")


class Unfinished(Generic[Place, Made]):
    """By model, what was made of the last grid that was stopped, as long as the model lives.

    What core hands a node anew from its cache are the same objects: large inputs are compared by identity.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[ModelPatcher, tuple[tuple[Any, ...], dict[Place, Made]]] = WeakKeyDictionary()

    def make_all(
        self,
        model: ModelPatcher,
        asked: Sequence[Any],
        places: Iterable[Place],
        make: Callable[[Place], Made],
        failed: Callable[[Place, Exception], Made],
    ) -> dict[Place, Made]:
        """What is made of every place, or of the error that ended it: the others are made nevertheless.

        Where the user stops it, what is finished is kept for the next call with the same model and ``asked``.

        Raises:
            Exception: nothing could be made: why the first could not.
        """
        made = self.take(model, asked)
        errors: dict[Place, Exception] = {}
        try:
            for place in places:
                comfy.model_management.throw_exception_if_processing_interrupted()
                if place in made:
                    continue
                try:
                    made[place] = make(place)
                except comfy.model_management.InterruptProcessingException:
                    raise
                except Exception as error:
                    logger.warning("%s: %s", " x ".join(map(str, place)), error, exc_info=True)
                    errors[place] = error
        except comfy.model_management.InterruptProcessingException:
            self.keep(model, asked, made)
            raise
        if errors and not made:
            raise next(iter(errors.values()))
        return made | {place: failed(place, error) for place, error in errors.items()}

    def take(self, model: ModelPatcher, asked: Sequence[Any]) -> dict[Place, Made]:
        """What was made of a grid of those inputs, which is forgotten here; nothing if the last one had others."""
        before, made = self._kept.pop(model, ((), {}))
        return made if len(before) == len(asked) and all(map(_same, before, asked)) else {}

    def keep(self, model: ModelPatcher, asked: Sequence[Any], made: dict[Place, Made]) -> None:
        """Keep it until it is asked for again, or another grid is of that model."""
        self._kept[model] = tuple(asked), made


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | float | str | tuple) and type(one) is type(other) and one == other)
