"""Errors a user can act on."""

from __future__ import annotations


class ConductorError(ValueError):
    """Names the input, what is wrong with it and what to do about it."""
