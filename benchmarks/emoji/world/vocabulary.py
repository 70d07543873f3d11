"""The small world's words: learned tokens in place of a text encoder, and who is held out of what.

``splits.json`` is where the held-out subjects and styles and the style LoRAs' subjects are written down.
``emoji_tokens.json``, made from it and from the pictures, is what every trainer and every tool reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .files import ARCHIVE, STYLE_SUBJECTS, WORDS

SPLITS = Path(__file__).resolve().parent / "splits.json"
SUBJECT_TRIGGERS, STYLE_TRIGGERS = 32, 8
PEOPLE = "People & Body"
PROMPT = "; ".join(
    (
        "ids=[<bos>,style,subject,class]",
        "context=tok[ids] (1,4,256)",
        "pooled=mean(pool[ids]) (1,256)",
        "negative ids=[<null>]*4",
    )
)


def vocabulary(archive: Path, splits: dict[str, list[str]]) -> dict[str, Any]:
    """What ``emoji_tokens.json`` holds.

    The base learns the subjects that every training style draws, less those held out and less people, who are too
    alike at this size. Raises ValueError if a held-out subject or style has no pictures.
    """
    with np.load(archive, allow_pickle=False) as pictures:
        names, styles = pictures["subject_names"].tolist(), pictures["style_names"].tolist()
        classes = dict(zip(names, pictures["subject_cat"].tolist(), strict=True))
        drawn: dict[str, set[str]] = {name: set() for name in names}
        for subject, style in zip(pictures["subject"].tolist(), pictures["style"].tolist(), strict=True):
            drawn[names[subject]].add(styles[style])
    held_subjects, held_styles = splits["holdout_subjects"], splits["holdout_styles"]
    if absent := [*(set(held_subjects) - set(names)), *(set(held_styles) - set(styles))]:
        raise ValueError(f"{archive} has no pictures of {', '.join(sorted(absent))}")
    training_styles = [style for style in styles if style not in held_styles]
    subjects = [
        name
        for name in names
        if drawn[name].issuperset(training_styles) and classes[name] != PEOPLE and name not in held_subjects
    ]
    tokens = ["<null>", "<bos>"]
    tokens += [f"style:{style}" for style in training_styles]
    tokens += [f"class:{name}" for name in sorted(set(classes.values()))]
    tokens += [f"<sks_subject{i}>" for i in range(SUBJECT_TRIGGERS)] + [
        f"<sks_style{i}>" for i in range(STYLE_TRIGGERS)
    ]
    tokens += [f"subject:{subject}" for subject in subjects]
    return {
        "tokens": tokens,
        "prompt": PROMPT,
        "holdout_subjects": held_subjects,
        "holdout_styles": held_styles,
        "train_subjects": subjects,
        "sks_subject_index": {name: i for i, name in enumerate(held_subjects)},
        "sks_style_index": {name: i for i, name in enumerate(held_styles)},
        "class_of": classes,
    }


def read_splits() -> dict[str, list[str]]:
    """holdout_subjects, holdout_styles, style_lora_subjects."""
    return json.loads(SPLITS.read_text(encoding="utf-8"))


def write(folder: Path) -> None:
    """Write ``emoji_tokens.json`` and ``style_lora_subjects.json`` beside the archive."""
    splits = read_splits()
    names = vocabulary(folder / ARCHIVE, splits)
    learned = [name for name in splits["style_lora_subjects"] if name in names["train_subjects"]]
    for file, content in ((STYLE_SUBJECTS, learned), (WORDS, names)):
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
