"""The axes of a comparison: a setting, and the values it takes in the rows or columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..core import ConductorError

# What people write for a switch, in the languages that the nodes speak.
OFF = (
    "false off no nein aus falsch non faux falso "
    "\u5426 \u5173 \u5047 \u3044\u3044\u3048 \u30aa\u30d5 \uc544\ub2c8\uc694 \ub054"
)
ON = "true on yes ja ein an wahr oui vrai sí si \u662f \u5f00 \u771f \u306f\u3044 \u30aa\u30f3 \uc608 \ucf2c"
SWITCH = dict.fromkeys(OFF.split(), False) | dict.fromkeys(ON.split(), True)


@dataclass(frozen=True)
class Setting:
    """One value of one setting.

    Attributes:
        name: of the input it stands for.
        value: as that input gives it.
        text: as it is shown.
    """

    name: str
    value: Any
    text: str

    @property
    def label(self) -> str:
        """What is written beside its pictures; a policy is known by its name alone."""
        return self.text if self.name == "policy" else f"{self.name} {self.text}"

    def __str__(self) -> str:
        return self.label


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
    """An axis from a list of values, separated by commas, semicolons or lines; what comes twice counts once.

    Chinese and Japanese commas and full-width letters are read as their own kind; where semicolons part the values, a
    comma within a number is a decimal point. Names may be written in capitals or not.

    Args:
        field: the input that chose the setting.
        text: the list.
        values_field: the input that the list was written in.
        wanted: the input that the values are for; its type, range or options say what is allowed.

    Raises:
        ConductorError: no values, or one that the input would not take.
    """
    texts = dict.fromkeys(_words(text, isinstance(wanted, io.Int.Input | io.Float.Input)))
    read, allowed = _reader(wanted)
    if not texts:
        raise ConductorError(
            f"{values_field}: the list is empty. Write values of {wanted.id}, separated by commas: {allowed}."
        )
    settings: dict[Setting, None] = {}
    for word in texts:
        try:
            value = read(word)
            settings[Setting(wanted.id, value, _plain(value, word))] = None
        except (ValueError, KeyError) as error:
            raise ConductorError(
                f"{values_field}: there is no {wanted.id} '{word}' to compare. Choose from: {allowed}."
            ) from error
    return Axis(field, wanted.id, tuple(settings))


def _plain(value: Any, word: str) -> str:
    """How a value is shown: names and switches as they are called, numbers as they were written."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else word


def _words(text: str, numbers: bool) -> Iterator[str]:
    text = unicodedata.normalize("NFKC", text).replace("\u3001", ",")
    if numbers and ";" in text:
        text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    return (word for line in text.splitlines() for word in map(str.strip, re.split("[,;]", line)) if word)


def _reader(wanted: io.Input) -> tuple[Callable[[str], Any], str]:
    """What reads a word as a value of that input, with ValueError or KeyError where it is none, and what is allowed."""
    if isinstance(wanted, io.Boolean.Input):
        return lambda word: SWITCH[word.casefold()], "false, true"
    if isinstance(wanted, io.Combo.Input):
        options = {option: option for option in wanted.options}
        folded = {option.casefold(): option for option in reversed(list(options))}
        return lambda word: options.get(word) or folded[word.casefold()], ", ".join(options)
    assert isinstance(wanted, io.Int.Input | io.Float.Input)
    kind, words = (int, "whole numbers") if isinstance(wanted, io.Int.Input) else (float, "numbers")
    least, most = wanted.min, wanted.max

    def read(word: str) -> float:
        number = kind(word)
        if not least <= number <= most:  # neither is NaN
            raise ValueError(word)
        return number

    return read, f"{words} from {least} to {most}"
