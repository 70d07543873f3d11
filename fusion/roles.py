"""The two roles that LoRAs have on a model."""

from __future__ import annotations

ROLES = ("subject", "style")
