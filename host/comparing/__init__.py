"""The same picture under several settings, side by side, and how like its references any picture is."""

from .axes import Axis, axis
from .grid import best_of, compare
from .picture import comparison_picture
from .score import Judge, fusion_score

__all__ = ["Axis", "Judge", "axis", "best_of", "compare", "comparison_picture", "fusion_score"]
