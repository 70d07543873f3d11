"""Layers with their LoRA branches: what is added to a layer's output, segment by segment."""

from .basis import Bases
from .batch import Batch
from .joint import Joint
from .layer import FusedLayer
from .meeting import Meeting, meetings
from .pairing import APART, Pairing, likeness
from .probe import Probe
from .segment import Part, Segment, SegmentDeltas, Weight, whole_of
from .tokens import take

__all__ = [
    "APART",
    "Bases",
    "Batch",
    "FusedLayer",
    "Joint",
    "Meeting",
    "Pairing",
    "Part",
    "Probe",
    "Segment",
    "SegmentDeltas",
    "Weight",
    "likeness",
    "meetings",
    "take",
    "whole_of",
]
