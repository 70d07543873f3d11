"""The header of a safetensors file: its metadata, and names and shapes of its tensors, without reading them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.utils

MOST_OF_A_HEADER = 1 << 25  # bytes
MOST_OF_A_COUNT = 1e12  # captions: more can be no number of anything


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors begin: written by others, so any of it may be anything.

    Attributes:
        metadata: texts under the names that their writers gave them; whatever is no text is left out.
        shapes: by key.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_header(path: str) -> Header:
    """The header of a file; empty for files of other kinds, and for those that are gone, damaged or boundless."""
    if not path.lower().endswith((".safetensors", ".sft")):
        return Header()
    try:
        said = json.loads(comfy.utils.safetensors_header(path, MOST_OF_A_HEADER) or b"{}")
    except (OSError, ValueError, LookupError, TypeError, RecursionError, struct.error):
        return Header()
    if not isinstance(said, dict):
        return Header()
    metadata = said.pop("__metadata__", None)
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return Header(
        {name: value for name, value in texts if isinstance(value, str)},
        {key: shape for key, entry in said.items() if (shape := _shape(entry)) is not None},
    )


def _shape(entry: Any) -> tuple[int, ...] | None:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    return tuple(shape) if isinstance(shape, list) and all(type(n) is int for n in shape) else None


def tags_of(metadata: Mapping[str, str], name: str = "ss_tag_frequency") -> dict[str, dict[str, float]]:
    """How often each tag came in each folder of the data, as sd-scripts write it; nothing if it is no such table."""
    try:
        read = json.loads(metadata.get(name, "{}"))
    except (ValueError, RecursionError):
        return {}
    folders = read.items() if isinstance(read, dict) else ()
    return {
        folder: {tag: count for tag, count in counts.items() if _is_count(count)}
        for folder, counts in folders
        if isinstance(counts, dict)
    }


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < MOST_OF_A_COUNT  # as NaN is not
