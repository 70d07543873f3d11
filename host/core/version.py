"""This pack's version."""

from __future__ import annotations

import re
from pathlib import Path


def pack_version() -> str:
    """From pyproject.toml, which is part of the installed pack."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert match is not None
    return match[1]
