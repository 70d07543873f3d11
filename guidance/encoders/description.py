"""Descriptions of networks are data: which fields a library gets to see, and within which bounds.

A description comes with a file from anywhere. What is not on a library's list never reaches it, and what does is a
number, a flag, a plain word or a list of these: nothing that a library could take for an address, a path, a plug-in or
a piece of code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .base import EncoderFileError

MAX_PIXELS = 2048  # of a picture's edge; published encoders read at most 1024
MAX_LAYERS = 512
MAX_NUMBER = 2**22  # larger than any published vocabulary
MAX_LENGTH, MAX_DEPTH = 512, 4  # of lists in a description
MAX_JSON = 16 * 2**20  # characters; a config.json with the names of 21,000 classes has about one million
WORD = re.compile(r"[A-Za-z0-9_]{0,64}")

Check = Callable[[Any], bool]


def flag(value: Any) -> bool:
    """True or false, also as a number."""
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def number(value: Any) -> bool:
    """A finite number of a size that networks have."""
    usual = isinstance(value, (int, float)) and not isinstance(value, bool)
    return usual and abs(value) <= MAX_NUMBER and math.isfinite(value)


def whole(most: int, least: int = 1) -> Check:
    """A whole number from `least` to `most`."""

    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return check


size = whole(MAX_NUMBER)
pixels = whole(MAX_PIXELS)


def layers(value: Any) -> bool:
    """A number of layers, or of every stage's, of at most MAX_LAYERS together."""
    counts = value if isinstance(value, (list, tuple)) else [value]
    flat = [count for part in counts for count in (part if isinstance(part, (list, tuple)) else [part])]
    return all(whole(MAX_LAYERS, 0)(count) for count in flat) and sum(flat) <= MAX_LAYERS


def one_or_pair(check: Check) -> Check:
    return lambda value: (
        check(value) or (isinstance(value, (list, tuple)) and len(value) == 2 and all(check(part) for part in value))
    )


def one_of(*choices: Any) -> Check:
    return lambda value: isinstance(value, (str, bool, int, type(None))) and value in choices


def plain(value: Any, depth: int = 0) -> bool:
    """A number, a flag, a plain word, or lists of these."""
    if isinstance(value, (list, tuple)):
        return len(value) <= MAX_LENGTH and depth < MAX_DEPTH and all(plain(part, depth + 1) for part in value)
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool) or number(value)


def table_of(fields: Mapping[str, Check]) -> Check:
    """A mapping with these fields only."""
    return lambda value: (
        isinstance(value, Mapping) and all(key in fields and fields[key](part) for key, part in value.items())
    )


def allowed(name: str, check: Check, value: Any, file_name: str) -> Any:
    """The value; raises EncoderFileError naming the file and the field unless it passes the check."""
    if not check(value):
        raise EncoderFileError(
            f"{file_name}: its description says {name} = {shown(value)}, which is not a usable value. Use another "
            "file, or correct the description."
        )
    return value


def checked(given: Any, fields: Mapping[str, Check], where: str, file_name: str) -> dict[str, Any]:
    """A copy of a described part, every field of it allowed. None, JSON's null, is allowed for every field.

    given: what the file says. fields: of the fields that the library may see, what their values must be. where: the
    part's name, for messages. Raises EncoderFileError naming the file and the field.
    """
    part = mapping(given, where, file_name)
    for key, value in part.items():
        if key not in fields:
            raise EncoderFileError(
                f"{file_name}: its description sets {where}.{shown(key)}, which is not taken from files: it is no "
                "plain property of a network, or may make a library download or run something. Use another file, or "
                "take it out of the description."
            )
        if value is not None:
            allowed(f"{where}.{key}", fields[key], value, file_name)
    return dict(part)


def mapping(given: Any, where: str, file_name: str) -> Mapping[str, Any]:
    """The value as a mapping with names as keys. Raises EncoderFileError if it is none."""
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise EncoderFileError(
            f"{file_name}: its description says {where} = {shown(given)}, where a JSON object is expected. Use "
            "another file, or correct the description."
        )
    return given


def statistics(value: Any, name: str, file_name: str, least: float) -> tuple[float, float, float]:
    """A mean or standard deviation per colour: three finite numbers of at least `least`. Raises EncoderFileError."""

    def check(value: Any) -> bool:
        usual = isinstance(value, (list, tuple)) and len(value) == 3 and all(number(part) for part in value)
        return usual and all(least <= part <= 256 for part in value)

    red, green, blue = allowed(name, check, value, file_name)
    return red, green, blue


MEAN_LEAST, STD_LEAST = -256.0, 1e-4


def read_json(source: str | Path, what: str) -> Any:
    """What a JSON text, or the file at a path, says. Raises EncoderFileError that begins with `what`."""
    try:
        long = source.stat().st_size if isinstance(source, Path) else len(source)
        if long > MAX_JSON:
            raise EncoderFileError(f"{what} is too long to be a description ({long} characters).")
        return json.loads(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    except RecursionError as error:
        raise EncoderFileError(f"{what} is nested too deeply to be a description.") from error
    except OSError as error:
        raise EncoderFileError(f"{what} cannot be read ({error.strerror}).") from error
    except EncoderFileError:
        raise
    except ValueError as error:
        raise EncoderFileError(f"{what} is not JSON ({error}).") from error


def shown(value: Any) -> str:
    """A value as messages show it, cut short."""
    text = json.dumps(value, default=lambda other: type(other).__name__) if _shallow(value) else "..."
    return text if len(text) <= 80 else text[:77] + "..."


def _shallow(value: Any, depth: int = 0) -> bool:
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _shallow(part, depth + 1) for key, part in value.items())
    return not isinstance(value, (list, tuple)) or all(_shallow(part, depth + 1) for part in value)


def fields_of(check: Check, names: str) -> dict[str, Check]:
    """The same check for several names, separated by blanks."""
    return dict.fromkeys(names.split(), check)


def any_of(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def listed_name(known: Callable[[str], bool], value: Any) -> bool:
    """Whether a name, up to its first dot, is one that a library knows by heart, and nothing to look up elsewhere."""
    return isinstance(value, str) and all(map(WORD.fullmatch, value.split("."))) and known(value.split(".")[0])


def words(names: str) -> frozenset[str]:
    """The names in a text, separated by blanks."""
    return frozenset(names.split())
