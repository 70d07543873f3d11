"""Whom the benchmarks draw: held-out subjects in held-out styles, by what they are used for."""

from __future__ import annotations

from collections.abc import Sequence

TUNE = ("panda", "octopus", "pizza", "rocket", "guitar", "pile-of-poo")
TEST = ("fox", "sunflower", "hamburger", "sailboat", "alien", "crown")
# Kept for the last: no setting, no default and no prompt was chosen with these in sight.
FRESH = (
    "penguin", "elephant", "tiger-face", "frog", "strawberry", "pineapple", "grapes", "bus", "police-car",
    "smiling-face-with-sunglasses", "skull", "soccer-ball",
)  # fmt: skip
STYLES = ("openmoji", "fluent-emoji-high-contrast")
SUBJECTS = {"tune": TUNE, "test": TEST, "fresh": FRESH}
SPLIT_STYLES = {
    "tune": (*STYLES, "duotone", "rotated"),
    "test": STYLES,
    "fresh": (*STYLES, "ballpoint", "sepia", "crayon", "stencil"),
}
"""The held-out styles of each split. Those that are not of STYLES are rendered, see ``rendered_styles.py``."""
SUBJECT_STYLES = ("noto", "twemoji")
"""Styles of the drawings that subject LoRAs are trained on."""


def chosen(subjects: str, styles: str | None) -> tuple[Sequence[str], Sequence[str]]:
    """Subjects and styles of a command line: a split's name or names with commas; by default the split's own styles."""
    return (
        SUBJECTS.get(subjects) or subjects.split(","),
        styles.split(",") if styles else SPLIT_STYLES.get(subjects, STYLES),
    )
