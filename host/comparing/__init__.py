"""The same picture under several settings, side by side, and how like its references any picture is."""

from .axes import Axis, axis
from .ballot import ballot_of
from .grid import best_of, compare
from .pair import eyes_of, measure_pair
from .pair_picture import pair_pictures, pair_sheet
from .pair_words import pair_figures, pair_report, pair_verdict
from .picture import comparison_picture
from .score import Judge, fusion_score

__all__ = [
    "Axis",
    "Judge",
    "axis",
    "ballot_of",
    "best_of",
    "compare",
    "comparison_picture",
    "eyes_of",
    "fusion_score",
    "measure_pair",
    "pair_figures",
    "pair_pictures",
    "pair_report",
    "pair_sheet",
    "pair_verdict",
]
