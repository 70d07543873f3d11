"""The axes of a comparison: a setting, and the values it takes in the rows or columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..core import ConductorError


@dataclass(frozen=True)
class Setting:
    """One value of one setting.

    Attributes:
        name: of the input it stands for.
        value: as that input gives it.
        text: as it was written.
    """

    name: str
    value: Any
    text: str

    @property
    def label(self) -> str:
        """What is written beside its pictures; a policy is known by its name alone."""
        return self.text if self.name == "policy" else f"{self.name} {self.text}"


@dataclass(frozen=True)
class Axis:
    """What changes along one side of the grid.

    Attributes:
        field: the input that chose it, for messages.
        name: of the setting.
        settings: its values, one a row or column.
    """

    field: str
    name: str
    settings: tuple[Setting, ...]


def axis(field: str, text: str, values_field: str, wanted: io.Input) -> Axis:
    """An axis from a list of values, separated by commas or lines; what comes twice counts once.

    Args:
        field: the input that chose the setting.
        text: the list.
        values_field: the input that the list was written in.
        wanted: the input that the values are for; its type, range or options say what is allowed.

    Raises:
        ConductorError: no values, or one that the input would not take.
    """
    texts = dict.fromkeys(word for line in text.splitlines() for word in map(str.strip, line.split(",")) if word)
    read, allowed = _reader(wanted)
    if not texts:
        raise ConductorError(
            f"{values_field}: the list is empty. Write values of {wanted.id}, separated by commas: {allowed}."
        )
    settings = []
    for word in texts:
        try:
            settings.append(Setting(wanted.id, read(word), word))
        except (ValueError, KeyError) as error:
            raise ConductorError(
                f"{values_field}: there is no {wanted.id} '{word}' to compare. Choose from: {allowed}."
            ) from error
    return Axis(field, wanted.id, tuple(settings))


def _reader(wanted: io.Input) -> tuple[Callable[[str], Any], str]:
    """What reads a word as a value of that input, with ValueError or KeyError where it is none, and what is allowed."""
    if isinstance(wanted, io.Combo.Input | io.Boolean.Input):
        options = {"false": False, "true": True}
        if isinstance(wanted, io.Combo.Input):
            options = {option: option for option in wanted.options}
        return options.__getitem__, ", ".join(options)
    assert isinstance(wanted, io.Int.Input | io.Float.Input)
    kind, words = (int, "whole numbers") if isinstance(wanted, io.Int.Input) else (float, "numbers")
    least, most = wanted.min, wanted.max

    def read(word: str) -> float:
        number = kind(word)
        if not least <= number <= most:  # neither is NaN
            raise ValueError(word)
        return number

    return read, f"{words} from {least} to {most}"
