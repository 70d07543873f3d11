"""Small models of every family of diffusion models that the host knows, by the name of its configuration class."""

from __future__ import annotations

from .family import Family, build, sample
from .images import IMAGES
from .others import OTHERS
from .unets import UNETS
from .videos import VIDEOS
from .wans import WANS

FAMILIES: dict[str, Family] = {family.model: family for family in (*UNETS, *IMAGES, *VIDEOS, *WANS, *OTHERS)}

__all__ = ["FAMILIES", "Family", "build", "sample"]
