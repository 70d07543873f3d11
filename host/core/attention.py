"""Which layers of a model are queries, keys, values and outputs of an attention, and where its heads and cuts lie.

Told by the modules around a layer, not by its name alone: an attention is the nearest module that has queries, keys
and values, whatever they are called; its output is the layer that takes what its heads give.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...fusion.layers import Part

# What ComfyUI's model families call it, on the attention or on the block that holds it.
WIDTHS = (
    "dim_head",
    "head_dim",
    "headdim",
    "attention_head_dim",
    "attn_head_dim",
    "d_head",
    "d_k",
    "hidden_size_per_attention_head",
)
COUNTS = (
    "num_heads",
    "heads",
    "n_heads",
    "nhead",
    "num_attention_heads",
    "n_local_heads",
    "num_q_heads",
    "heads_num",
    "h",
)
KEY_COUNTS = ("num_kv_heads", "kvheads", "n_kv_heads", "n_local_kv_heads", "num_key_value_heads", "kv_heads")
# Modules whose queries, keys and values are joined and cut anew, so that no layer gives what it is called after.
INTERLEAVED = ("comfy.ldm.hunyuan3dv2_1.hunyuandit",)
DEEP = 2  # names between an attention and its projections
ABOVE = 3  # modules above an attention that may know its heads

_KINDS = {"query": "q", "key": "k", "value": "v", "output": "out", "o": "out"}
_KIND = re.compile(r"^(?:w\d*)?(qkv|kv|q|k|v|o|query|key|value|out|output)$")
_NOISE = {"to", "proj", "linear", "layer", "w", "attn", "0", ""}


@dataclass(frozen=True)
class _Named:
    """A projection of an attention: its name below it, ``q``, ``k``, ``v``, ``kv``, ``qkv`` or ``out``, and what tells
    it from the same of another stream."""

    name: str
    kind: str
    stream: str


def attention_parts(model: nn.Module) -> dict[str, tuple[Part, ...]]:
    """By name of a layer, what its output channels are, from the first to the last.

    Layers that are no part of an attention are missing, and so are those whose parts do not lie one after the other.
    """
    layers = {
        name.replace("._orig_mod", ""): module
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    }
    below: dict[str, list[str]] = {}
    for name in layers:
        path = name.split(".")
        for depth in range(1, DEEP + 2):
            if depth < len(path):
                below.setdefault(".".join(path[:-depth]), []).append(name)
    modules = {name.replace("._orig_mod", ""): module for name, module in model.named_modules()}
    found: dict[str, tuple[Part, ...]] = {}
    taken: set[str] = set()
    # The innermost first: a block holds the projections of its attentions too.
    for owner in sorted(below, key=lambda name: -name.count(".")):
        own = [name for name in below[owner] if name not in taken]
        parts = _parts_of_one(owner, {name: layers[name] for name in own}, modules)
        if parts is not None:
            found |= parts
            taken.update(own)
    return found


def _parts_of_one(
    owner: str, layers: Mapping[str, Any], modules: Mapping[str, Any]
) -> dict[str, tuple[Part, ...]] | None:
    """None where the module is no attention."""
    named = {name: its for name in layers if (its := _named(name.removeprefix(f"{owner}."))) is not None}
    inner = {letter for its in named.values() if its.kind not in ("out", "proj") for letter in its.kind}
    if not inner >= set("qkv"):
        return _joint(owner, layers, modules) or None
    if type(modules[owner]).__module__ in INTERLEAVED:
        return {}
    width = _head_width(owner, named, layers, modules)
    if width is None:
        return {}
    numbers = _number(owner, modules, COUNTS), _number(owner, modules, KEY_COUNTS)
    cuts = {
        name: found
        for name, its in named.items()
        if its.kind not in ("out", "proj") and (found := _cuts(its.kind, layers[name].out_features, width, *numbers))
    }
    outs = _outputs(
        owner, named, layers, {stop - start for found in cuts.values() for start, stop, k in found if k == "q"}
    )
    if not outs and any(its.kind in ("out", "proj") for its in named.values()):
        return {}  # something else is made of the queries than heads: a difference of two attentions
    streams = _streams(named, outs)
    parts = {
        name: tuple(
            Part(start, stop, kind, width, _group(owner, kind, named[name].stream, streams))
            for start, stop, kind in found
        )
        for name, found in cuts.items()
    }
    for name, its in outs.items():
        parts[name] = (Part(0, layers[name].out_features, "out", None, _group(owner, "out", its.stream, streams)),)
    return parts


def _outputs(
    owner: str, named: Mapping[str, _Named], layers: Mapping[str, Any], whole: Container[int]
) -> dict[str, _Named]:
    """Layers that take what the heads give; by their names, or else the only one that could."""
    fit = {name for name, layer in layers.items() if layer.in_features in whole}
    for told in ("out", "proj"):
        outs = {name: its for name, its in named.items() if its.kind == told and name in fit}
        if outs:
            return outs
    rest = [
        name for name in fit if name not in named and name.count(".") == owner.count(".") + 1 and "gate" not in name
    ]
    return {rest[0]: _Named(rest[0], "out", "")} if len(rest) == 1 else {}


def _streams(named: Mapping[str, _Named], outs: Container[str]) -> dict[str, list[str]]:
    """Streams of the queries, and of the outputs, in the order of the modules."""
    return {
        "q": list(dict.fromkeys(its.stream for its in named.values() if its.kind in ("q", "qkv"))),
        "v": list(dict.fromkeys(its.stream for its in named.values() if its.kind in ("v", "kv", "qkv"))),
        "out": list(dict.fromkeys(its.stream for name, its in named.items() if name in outs)),
    }


def _group(owner: str, kind: str, stream: str, streams: Mapping[str, list[str]]) -> str:
    """The name that queries and keys share, and that values share with the output."""
    if kind in ("q", "k"):
        known = streams["q"]
        shared = stream if stream in known or len(known) != 1 else known[0]
        return f"{owner}:{shared}qk"
    outs, values = streams["out"], streams["v"]
    if kind == "out" and stream not in values and len(values) == len(outs):
        stream = values[outs.index(stream)]
    elif kind == "v" and stream not in outs and len(outs) == 1:
        stream = outs[0]
    return f"{owner}:{stream}vo"


def _cuts(kind: str, out: int, width: int, heads: int | None, pairs: int | None) -> list[tuple[int, int, str]] | None:
    """First channel, the one after the last, and what they are; None where that is not known."""
    if len(kind) == 1:
        return [(0, out, kind)] if out % width == 0 else None
    if kind == "kv":
        sizes = [out // 2] * 2
    elif heads and pairs and (heads + 2 * pairs) * width == out:
        sizes = [heads * width, pairs * width, pairs * width]
    else:
        sizes = [out // 3] * 3
    if sum(sizes) != out or any(size % width for size in sizes):
        return None
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [(start, start + size, letter) for start, size, letter in zip(starts, sizes, kind, strict=True)]


def _joint(owner: str, layers: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, tuple[Part, ...]]:
    """A block whose first layer gives queries, keys, values and the MLP's features, and whose second takes them."""
    first, second = (layers.get(f"{owner}.{name}") for name in ("linear1", "linear2"))
    heads = _number(owner, modules, COUNTS, above=0)
    if first is None or second is None or not heads:
        return {}
    hidden = second.out_features
    inner = second.in_features - hidden
    if (
        first.in_features != hidden
        or hidden % heads
        or inner <= 0
        or first.out_features - 3 * hidden
        not in (
            inner,
            2 * inner,  # gated
        )
    ):
        return {}
    width = hidden // heads
    kinds = [(i * hidden, (i + 1) * hidden, kind) for i, kind in enumerate("qkv")]
    parts = [
        Part(start, stop, kind, width, _group(owner, kind, "", {"q": [""], "v": [""], "out": [""]}))
        for start, stop, kind in kinds
    ]
    return {f"{owner}.linear1": (*parts, Part(3 * hidden, first.out_features, "mlp"))}


def _named(relative: str) -> _Named | None:
    """By the words of a name below an attention; None where none of them says what the layer is."""
    tokens = re.split(r"[._]+", relative.lower())
    if len(tokens) > 4 or "gate" in tokens or "norm" in tokens:
        return None
    kinds = [(i, match[1]) for i, token in enumerate(tokens) if (match := _KIND.match(token))]
    if len(kinds) > 1:
        return None
    if kinds:
        at, word = kinds[0]
        stream = [token for i, token in enumerate(tokens) if i != at and token not in _NOISE]
        if number := re.match(r"w(\d+)", tokens[at]):
            stream.append(number[1])
        return _Named(relative, _KINDS.get(word, word), "_".join(stream))
    if "proj" in tokens:
        return _Named(relative, "proj", "_".join(token for token in tokens if token not in _NOISE))
    return None


def _head_width(
    owner: str, named: Mapping[str, _Named], layers: Mapping[str, Any], modules: Mapping[str, Any]
) -> int | None:
    heads, pairs = _number(owner, modules, COUNTS), _number(owner, modules, KEY_COUNTS)
    for name, its in named.items():
        out = layers[name].out_features
        if heads and its.kind == "q" and out % heads == 0:
            return out // heads
        if heads and its.kind == "qkv":
            if pairs and out % (heads + 2 * pairs) == 0:
                return out // (heads + 2 * pairs)
            if out % (3 * heads) == 0:
                return out // (3 * heads)
    return _number(owner, modules, WIDTHS)


def _number(owner: str, modules: Mapping[str, Any], names: tuple[str, ...], above: int = ABOVE) -> int | None:
    """The nearest module's number of that name, from the attention upwards."""
    for module in _upwards(owner, modules, above):
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _upwards(owner: str, modules: Mapping[str, Any], above: int) -> Iterator[Any]:
    path = owner.split(".")
    for depth in range(min(above + 1, len(path))):
        yield modules[".".join(path[: len(path) - depth])]
