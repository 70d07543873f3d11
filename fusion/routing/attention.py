"""Which layers belong to one attention, by their names.

Models name projections in a few ways (``to_q``, ``q_proj``, ``wq``, ``attn.q``, ``add_k_proj``); fused ones are cut
into slices, three equal ones being query, key and value.
"""

from __future__ import annotations

import re

_PROJECTION = re.compile(r"^(?:.*\.)?(?P<head>add_)?(?:to_|w)?(?P<kind>q|k|v|o|out)(?:_(?:proj|img|linear))?(?:\.0)?$")
_SLICE = re.compile(r"^(?P<layer>.*)\[(?P<start>\d+):(?P<stop>\d+)\]$")
FUSED = re.compile(r"(?:^|[._])(?:to_)?qkv(?:_proj)?$|\.linear1$")
_PARTNERS = {"q": "qk", "k": "qk", "v": "vo", "o": "vo", "out": "vo"}


def attention_group(name: str) -> str | None:
    """A name shared by the query and key projections of one attention, another by value and output; None for others.

    Args:
        name: of a segment, e.g. ``...transformer_blocks.0.attn1.to_q`` or ``...img_attn.qkv[0:3072]``.
    """
    kind, owner = projection_kind(name), name
    if kind is None:
        return None
    if cut := _SLICE.match(name):
        owner = cut["layer"]
    elif name.endswith(".0"):
        owner = name[:-2]
    return f"{owner.rpartition('.')[0]}:{'add_' if '.add_' in name else ''}{_PARTNERS[kind]}"


def projection_kind(name: str) -> str | None:
    """``q``, ``k``, ``v``, ``o`` or ``out``; None for what is no projection of an attention."""
    if cut := _SLICE.match(name):
        start, stop = int(cut["start"]), int(cut["stop"])
        index, rest = divmod(start, stop - start)
        return "qkv"[index] if FUSED.search(cut["layer"]) and rest == 0 and index < 3 else None
    found = _PROJECTION.match(name)
    return found["kind"] if found else None
