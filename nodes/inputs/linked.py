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


# Menus are not among them: what is on one is known where the value is used.
KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    io.Int.Input: ("whole number", _is_whole),
    io.Float.Input: ("finite number", _is_finite),
    io.Boolean.Input: ("switch, true or false,", lambda value: isinstance(value, Integral)),
    io.String.Input: ("text", lambda value: isinstance(value, str)),
}


def typed(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's ``execute`` that is only called with numbers, switches and texts where its schema has them.

    Raises:
        ConductorError: another value came by a link; names the input and the value.
    """
    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {}

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *given: Any, **inputs: Any) -> io.NodeOutput:
        if not kinds:
            kinds.update({part.id: KINDS[type(part)] for part in cls.define_schema().inputs if type(part) in KINDS})
        for name in kinds.keys() & inputs.keys():
            kind, fits = kinds[name]
            if not fits(inputs[name]):
                raise ConductorError(
                    f"{name}: a {kind} is expected, got {quoted(inputs[name])}. Link another value, or set one on the "
                    "node."
                )
        return execute(cls, *given, **inputs)

    return checked
