"""Values that come by a link: core compares only what is set on the node itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io

from ...host.core import ConductorError, quoted

MOST = 2**64  # of a whole number


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and -MOST < int(value) < MOST


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except (OverflowError, ValueError):
        return False


# What it is called, what fits, and what that becomes: numbers of other libraries are Python's from here on.
Kind = tuple[str, Callable[[Any], bool], Callable[[Any], Any]]
# Menus are not among them: what is on one is known where the value is used.
KINDS: dict[type, Kind] = {
    io.Int.Input: ("whole number", _is_whole, int),
    io.Float.Input: ("finite number", _is_finite, float),
    io.Boolean.Input: ("switch, true or false,", lambda value: isinstance(value, Integral), bool),
    io.String.Input: ("text", lambda value: isinstance(value, str), str),
}


def typed(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's ``execute`` that is only called with numbers, switches and texts where its schema has them.

    Raises:
        ConductorError: another value came by a link; names the input and the value.
    """
    kinds: dict[str, Kind] = {}

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *given: Any, **inputs: Any) -> io.NodeOutput:
        if not kinds:
            kinds.update({part.id: KINDS[type(part)] for part in cls.define_schema().inputs if type(part) in KINDS})
        for name in kinds.keys() & inputs.keys():
            kind, fits, plain = kinds[name]
            if not fits(inputs[name]):
                raise ConductorError(
                    f"{name}: a {kind} is expected, got {quoted(inputs[name])}. Link another value, or set one on the "
                    "node."
                )
            inputs[name] = plain(inputs[name])
        return execute(cls, *given, **inputs)

    return checked
