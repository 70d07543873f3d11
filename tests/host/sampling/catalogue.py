"""All ways to sample that the tables have."""

from __future__ import annotations

from . import guiders, latents, mechanisms, patches, samplers
from .ways import Way

WAYS: list[Way] = [*samplers.WAYS, *guiders.WAYS, *patches.WAYS, *latents.WAYS, *mechanisms.WAYS]
SECTIONS = list(dict.fromkeys(way.section for way in WAYS))
