"""Errors a user can act on."""

from __future__ import annotations

import sys

from .printable import message, printable


class ConductorError(ValueError):
    """Names the input, what is wrong with it and what to do about it.

    Whatever it quotes becomes printable here. So do the errors that it is raised from: core logs them with it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(message(text))
        cause = sys.exc_info()[1]
        while cause is not None:
            cause.args = tuple(message(part) if isinstance(part, str) else part for part in cause.args)
            cause = cause.__cause__ or cause.__context__


def unreadable(error: Exception) -> str:
    """Why a file of weights was not read, without advice that is not for users: PyTorch's is to load it unsafely."""
    if type(error).__name__ == "UnpicklingError" or "weights_only" in str(error):
        return "it holds more than tensors, which is not loaded for safety"
    if isinstance(error, (AttributeError, TypeError, KeyError, IndexError)):
        return "it is no table of named tensors"
    line = next(iter(str(error).strip().splitlines()), "")
    return printable(line)[:200] or type(error).__name__
