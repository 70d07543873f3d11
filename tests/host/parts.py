"""A file's patch of core's, cut into the parts of a layer that are decided apart: what references are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any


def patches_by_part(target: Any, patch: Any, layers: Collection[str]) -> Iterator[tuple[Any, Any, str]]:
    """Core's keys, the patches, and the names of the decisions about them.

    Args:
        target: of the file's entry.
        patch: core's, a plain LoRA where its layer is decided in parts.
        layers: names of all decisions of a run.
    """
    name = target.key.removesuffix(".weight")
    cut = [own for own in layers if own.startswith(f"{name}[")]
    if not cut:
        yield target.core_key, patch, name
    for own in cut:
        start, stop = map(int, own[len(name) + 1 : -1].split(":"))
        up, *others = patch.weights
        yield (target.key, (0, start, stop - start)), type(patch)(patch.loaded_keys, (up[start:stop], *others)), own
