"""A value of a menu that may have been linked: core compares only what is set on the node itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import ConductorError
from .printable import quoted


def chosen(value: Any, options: Iterable[str], where: str) -> str:
    """The value, if it is one of the menu's.

    Raises:
        ConductorError: it is not; names the input and the menu.
    """
    menu = list(options)
    if not isinstance(value, str) or value not in menu:
        raise ConductorError(f"{where}: {quoted(value)} is not on its menu. Choose one of {', '.join(menu)}.")
    return value
