"""Layers with their LoRA branches: what is added to a layer's output, segment by segment."""

from .batch import Batch
from .layer import FusedLayer
from .pairing import ALIKE, APART, Pairing
from .probe import Probe
from .segment import Segment, SegmentDeltas, Weight
from .tokens import take

__all__ = ["ALIKE", "APART", "Batch", "FusedLayer", "Pairing", "Probe", "Segment", "SegmentDeltas", "Weight", "take"]
