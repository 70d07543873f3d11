"""The policy that our benchmark favours, and what users call each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Policy
from .scored.balanced import Balanced

RECOMMENDED: Policy = Balanced()


def title(settings: Mapping[str, Any]) -> str:
    """What users call the policy with these settings: they choose ``recommended``, whichever policy it is by now."""
    return "recommended" if dict(settings) == RECOMMENDED.settings() else str(settings["policy"])
