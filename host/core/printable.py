"""Text from outside as text that can be shown: in core's log, on the page, in any file.

Names of files, prefixes, metadata and fields of plans may hold lone surrogates, which no encoding knows (core's log
then ends the thread that runs all prompts), and control characters, which move a terminal's cursor or forge lines.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Any

MOST_OF_A_MESSAGE, MOST_OF_A_TEXT = 4000, 200_000  # characters

# Line breaks and tabs stay; C0, DEL and C1 controls, lone surrogates, and marks that turn the direction of writing go.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(value: Any, most: int = MOST_OF_A_TEXT) -> Any:
    """The same text, escaped where it cannot be printed and shortened in its middle; of plain data, all its texts, and
    None for numbers that JSON has no word for (NaN, infinity), on which the page stumbles.

    Args:
        value: a text, or JSON of texts, numbers, lists and objects. Text that needs nothing is given back as it is.
        most: characters a text may have.
    """
    if isinstance(value, str):
        text = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
        if len(text) <= most:
            return text
        return f"{text[: most * 3 // 4]} [... {len(text) - most} characters ...] {text[-(most // 4) :]}"
    if isinstance(value, Mapping):
        return {printable(key, most): printable(entry, most) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [printable(entry, most) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def quoted(value: Any, most: int = 100) -> str:
    """How a value that came from outside looks, in short; of what cannot say it, such as endless numbers, its type."""
    try:
        return repr(value)[:most]
    except Exception:
        return f"a {type(value).__name__}"


def message(text: str) -> str:
    """A text for core's log: printable, short, and in the characters that the log can write."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return printable(text, MOST_OF_A_MESSAGE).encode(encoding, "backslashreplace").decode(encoding)
