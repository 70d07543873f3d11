"""What users choose: a LoRA file in a role, by name, alone or in a ``LORA_STACK``.

A stack is how other node packs hand lists of LoRAs around, as tuples (name, model strength, clip strength).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..core import ConductorError, quoted

NO_LORA = "None"


@dataclass(frozen=True)
class LoraChoice:
    """What a user chose for one role. Strengths as in core's loader: any float, 0 leaves that part alone.

    ``where`` says which entry of which stack it is, where it comes from one. What is not ``on`` is as if it were not
    there.
    """

    name: str
    role: str
    strength: float
    clip_strength: float
    where: str | None = None
    on: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            where, kind = self.where or f"{self.role} LoRA", type(self.name).__name__
            raise ConductorError(f"{where} a name is expected, got {kind}. Pick a file, or link a text.")

    def acts(self, clip_given: bool) -> bool:
        """Whether it does anything where it is loaded: with no text encoder its strength there counts as nothing."""
        return self.on and self.name != NO_LORA and (self.strength != 0 or (clip_given and self.clip_strength != 0))


StackEntry = tuple[str, float, float]


def choices_of_stack(stack: Any, role: str, where: str) -> list[LoraChoice]:
    """The LoRAs of a stack, all in one role; entries named "None" are empty places.

    Args:
        stack: a list of tuples, or None where nothing is connected.
        role: "subject" or "style".
        where: the input's name, for errors.

    Raises:
        ConductorError: an entry is not what the convention says.
    """
    if stack is None:
        return []
    if not isinstance(stack, (list, tuple)):
        raise ConductorError(
            f"{where}: a {type(stack).__name__} is no LORA_STACK. Connect a node that gives a list of (LoRA name, "
            "model strength, clip strength)."
        )
    found = [_choice(entry, role, f"{where}, entry {number}") for number, entry in enumerate(stack, 1)]
    return [choice for choice in found if choice.name != NO_LORA]


def _choice(entry: Any, role: str, where: str) -> LoraChoice:
    if isinstance(entry, (list, tuple)) and len(entry) == 4 and not isinstance(entry[3], Real):
        # Some packs have a fourth field, for strengths by block.
        if not _says_nothing(entry[3]):
            raise ConductorError(
                f"{where}: {quoted(entry[0])} has strengths by block ({quoted(entry[3])}), which no LoRA has here. "
                "Clear them in the node that made the stack, or let a loader of its pack apply that LoRA."
            )
        entry = entry[:3]
    fits = isinstance(entry, (list, tuple)) and len(entry) == 3 and isinstance(entry[0], str)
    if not fits or not all(_is_strength(value) for value in entry[1:]):
        raise ConductorError(
            f"{where}: {quoted(entry)} is not (LoRA name, model strength, clip strength). Check the node that made the "
            "stack."
        )
    name, strength, clip_strength = entry[:3]
    return LoraChoice(name, role, float(strength), float(clip_strength), where)


def _says_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _is_strength(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    except (OverflowError, ValueError):
        return False


def stack_of(choices: list[LoraChoice], clip_given: bool = True) -> list[StackEntry]:
    """The LoRAs that were applied, as other packs take them."""
    return [(choice.name, choice.strength, choice.clip_strength) for choice in choices if choice.acts(clip_given)]
