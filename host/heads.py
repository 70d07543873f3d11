"""How wide the attention heads of a layer's output are."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..fusion.attention import FUSED, projection_kind
from .live import find_module

# What ComfyUI's model families call it, on the attention or on the block that holds it.
WIDTHS = ("dim_head", "head_dim", "attention_head_dim", "d_head")
COUNTS = ("num_heads", "heads", "n_heads", "num_attention_heads", "n_local_heads", "num_q_heads")


def head_width(model: nn.Module, name: str) -> int | None:
    """Channels of a head where a layer projects to queries, keys or values, as the model's own modules tell it.

    Args:
        name: of the layer, e.g. ``diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q``.
    """
    fused = bool(FUSED.search(name))
    if not fused and projection_kind(name) not in ("q", "k", "v"):
        return None
    out = getattr(find_module(model, name), "out_features", None)
    path = name.split(".")
    for depth in (1, 2):
        owner: Any = find_module(model, ".".join(path[:-depth]))
        width = _number(owner, WIDTHS)
        if width:
            return width
        count = _number(owner, COUNTS)
        # The whole width of the model, where the layer's own may hold keys and values, or an MLP, too.
        total = _number(owner, ("inner_dim", "hidden_size", "dim", "hidden_dim")) or (None if fused else out)
        if count and total and total % count == 0:
            return total // count
    return None


def _number(owner: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
