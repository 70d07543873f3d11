"""Checks of plain data that came from outside: each value by its path, or a refusal that names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_OF_A_NUMBER = 1e9
MOST_OF_A_TEXT, MOST_OF_A_MESSAGE = 4096, 500  # characters
DEPTH, ENTRIES = 8, 1000  # of settings and the like


class PlanError(ValueError):
    """A plan cannot be read, or does not fit what it is used on."""

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= MOST_OF_A_MESSAGE else f"{text[:MOST_OF_A_MESSAGE]}...")


def shown(value: Any) -> str:
    """A value in a message: printable whatever it is, and short."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def number(value: Any, where: str, least: float = -MOST_OF_A_NUMBER, most: float = MOST_OF_A_NUMBER) -> float:
    # A comparison is what neither NaN nor an integer too large for a float passes or breaks.
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise PlanError(f"{where} must be a number from {least:g} to {most:g}, not {shown(value)}")
    return float(value)


def whole(value: Any, where: str, least: int = 0, most: int = 10**9) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PlanError(f"{where} must be a whole number from {least} to {most}, not {shown(value)}")
    return value


def text(value: Any, where: str, options: Sequence[str] = ()) -> str:
    if not isinstance(value, str):
        raise PlanError(f"{where} must be a text, not {shown(value)}")
    if options and value not in options:
        raise PlanError(f"{where} must be one of {', '.join(options)}, not {shown(value)}")
    if len(value) > MOST_OF_A_TEXT:
        raise PlanError(f"{where} has {len(value)} characters, more than {MOST_OF_A_TEXT}")
    return value


def items(value: Any, where: str, most: int, least: int = 0) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError(f"{where} must be a list, not {shown(value)}")
    if not least <= len(value) <= most:
        raise PlanError(f"{where} must have from {least} to {most} entries, and has {len(value)}")
    return value


def entry(holder: dict[str, Any], key: str, where: str = "") -> Any:
    if key not in holder:
        raise PlanError(f"{where + '.' if where else ''}{key} is missing")
    return holder[key]


def an_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where} must be an object, not {shown(value)}")
    if len(value) > ENTRIES:
        raise PlanError(f"{where} must have at most {ENTRIES} entries, and has {len(value)}")
    return value


def plain(value: Any, where: str, depth: int = DEPTH) -> None:
    """Data that nobody looks into: JSON of bounded size, with finite numbers."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        text(value, where)
    elif isinstance(value, int | float):
        # Seeds are whole numbers of 64 bits.
        number(value, where, -(2.0**64), 2.0**64)
    elif not isinstance(value, list | dict):
        raise PlanError(f"{where} is out of place")
    elif depth == 0:
        raise PlanError(f"{where} is nested more than {DEPTH} deep")
    elif isinstance(value, list):
        for i, inner in enumerate(items(value, where, ENTRIES)):
            plain(inner, f"{where}[{i}]", depth - 1)
    else:
        for key, inner in an_object(value, where).items():
            text(key, f"a name in {where}")
            plain(
                inner, f"{where}.{key}" if key.isidentifier() and key.isascii() else f"{where}[{shown(key)}]", depth - 1
            )


def setting(value: Any, default: Any, where: str) -> Any:
    """A value of the kind that a setting's default is."""
    if isinstance(default, bool):
        if value not in (0, 1) or not isinstance(value, int):
            raise PlanError(f"{where} must be true or false, not {shown(value)}")
        return bool(value)
    if isinstance(default, int):
        return whole(value, where, most=2**63 - 1)
    if isinstance(default, float):
        number(value, where)
        return value
    return text(value, where)
