"""What lies beside a LoRA file: notes that other programs and people left about it, under its own name."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MOST_OF_A_NOTE = 1 << 21  # bytes; what Civitai tells of a file, with all its pictures, is some ten thousand
MOST_OF_WORDS = 4096  # bytes of a text that is nothing but trigger words

# Endings behind the file's name without its own, or with it, those first that people edit themselves: of Automatic1111
# and its heirs, rgthree, LoRA Manager, Civitai Helper.
_ENDINGS = (".json", ".rgthree-info.json", ".metadata.json", ".civitai.info", ".txt")

# Where in such a note what is wanted may be, the surest first.
_WORDS = (
    ("activation text",),
    ("activation_text",),
    ("trainedWords",),
    ("trained_words",),
    ("trigger_words",),
    ("civitai", "trainedWords"),
)
_BASES = (("sd version",), ("base_model",), ("baseModel",), ("civitai", "baseModel"))


class Note(NamedTuple):
    """One note: its ending, and what it says, as its writer wrote it."""

    source: str
    words: list[str]
    base: str


def notes_beside(path: str) -> Iterator[Note]:
    """The notes beside a file; those that cannot be read, or say nothing that can be understood, are passed over."""
    stem = os.path.splitext(path)[0]
    for ending in _ENDINGS:
        for place in (path + ending, stem + ending):
            text = _text(place, MOST_OF_WORDS if ending == ".txt" else MOST_OF_A_NOTE)
            if not text:
                continue
            note = Note(ending, text.splitlines(), "") if ending == ".txt" else _read(ending, text)
            if note.words or note.base:
                yield note


def _text(place: str, most: int) -> str:
    try:
        found = os.stat(place)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            return ""
        with Path(place).open("rb") as file:
            return file.read(most).decode("utf-8-sig")
    except (OSError, ValueError):
        return ""


def _read(source: str, text: str) -> Note:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    words = next((found for path in _WORDS if (found := list(_texts(_at(said, path))))), [])
    base = next((found for path in _BASES if isinstance(found := _at(said, path), str) and found.strip()), "")
    return Note(source, words, base)


def _at(said: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        said = said.get(name) if isinstance(said, dict) else None
    return said


def _texts(value: Any) -> Iterator[str]:
    """A text, or a list of texts, or of tables that have one as their ``word``."""
    for entry in value if isinstance(value, list) else [value]:
        word = entry.get("word") if isinstance(entry, dict) else entry
        if isinstance(word, str) and word.strip():
            yield word
