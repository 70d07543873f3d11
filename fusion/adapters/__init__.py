"""Adapters: what a LoRA file holds for one weight, and the module that computes it beside the layer.

Out here: the shape of a layer, what all kinds of adapter share, and the deltas that others are made into. Each kind is
a file of its own, which only the table of kinds (``host/loras/kinds.py``) imports: so a new one is a file and a row.
"""

from .base import Bypass, Delta, DeltaError, NotFiniteError, Place, finite, fits, frozen, like, peak, scale_of
from .base_layer import BaseLayer
from .dense import densified, weight_difference
from .dora import DoRADelta
from .geometry import Geometry
from .low_rank import LowRankDelta

__all__ = [
    "BaseLayer",
    "Bypass",
    "Delta",
    "DeltaError",
    "DoRADelta",
    "Geometry",
    "LowRankDelta",
    "NotFiniteError",
    "Place",
    "densified",
    "finite",
    "fits",
    "frozen",
    "like",
    "peak",
    "scale_of",
    "weight_difference",
]
