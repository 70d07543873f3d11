"""Lists of things in reports."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LISTED = 12
MAX_LETTERS = 300


def listed(items: Iterable[str]) -> list[str]:
    names = list(items)
    shown = [f"    {name:.{MAX_LETTERS}}" for name in names[:MAX_LISTED]]
    return shown + ([f"    ... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else [])
