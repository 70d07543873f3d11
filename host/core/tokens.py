"""How a model makes tokens of a picture, and where they stand beside those of a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...fusion.routing import Picture

# Diffusion models whose layers see text and picture as one sequence, by their class: what stands first. No attribute
# says so.
_JOINED = {
    "MMDiT": "text",  # AuraFlow
    "Flux": "text",
    "Chroma": "text",
    "ChromaRadiance": "text",
    "HunyuanVideo": "text",
    "NextDiT": "text",
    "NextDiTPixelSpace": "text",
    "OmniGen2Transformer2DModel": "text",
    "BooguTransformer2DModel": "text",
    "Ideogram4Transformer2DModel": "text",
    "SingleStreamDiT": "text",  # Krea 2
    "CogVideoXTransformer3DModel": "text",
    "HiDreamImageTransformer2DModel": "picture",
    "ErnieImageModel": "picture",
    "QwenImageTransformer2DModel": "picture",  # its references stand behind it
}
# They write other pictures behind the one in the making; elsewhere those stand before it, or apart.
_BEHIND = ("Flux", "Chroma", "SingleStreamDiT")
# Latents that are patches already, whatever the model's attribute says.
_WHOLE = ("LensTransformer2DModel", "Ideogram4Transformer2DModel")
# Layers that see a text alone: their tokens are no picture, however many there are.
_TEXT = re.compile(
    r"(^|[._])(txt|text|context|cap|caption|instruct|prompt|llm|llama|lyric|byt5|clip|y|encoder_hid|vision)([._]|$)"
    r"|txt_|text_|context_|_txt|_text|add_[qkv]_proj|to_add_out|caption_|_t$|_y$|t5|byt5|kv_mapper"
    r"|(attn2|cross_?att[a-z]*|crossattn)\.((to_|w)?(k|v|kv|key|value)(_img|_proj|_linear)?|(kv|k|v)_linear)(\.\d+)?$"
)


def sees_text(layer: str) -> bool:
    """Whether a layer's name says that a text alone goes through it."""
    return _TEXT.search(layer) is not None


def picture_of(model: nn.Module, x: Tensor, text: Tensor | None, conditions: Mapping[str, Any]) -> Picture:
    """What a model call tells of its tokens.

    Args:
        model: core's, with a ``diffusion_model``.
        x: the latents ``[rows, channels, ..., height, width]``.
        text: the prompt ``[rows, tokens, width]``.
        conditions: further arguments of the call.
    """
    network = getattr(model, "diffusion_model", None)
    network = getattr(network, "_orig_mod", network)
    name, patch = type(network).__name__, _patch(network)
    references = 0
    if patch is not None and name in _BEHIND:
        for latent in conditions.get("ref_latents") or ():
            references += -(-latent.shape[-2] // patch[1]) * -(-latent.shape[-1] // patch[2])
    return Picture(
        tuple(x.shape[2:]),
        patch,
        _JOINED.get(name, ""),
        int(getattr(network, "pad_tokens_multiple", None) or 1),
        references,
        text.shape[1] if isinstance(text, Tensor) and text.ndim > 2 else 0,
    )


def _patch(network: Any) -> tuple[int, int, int] | None:
    """Frames, rows and columns in a token; None for models with convolutions from end to end, and others unknown."""
    if type(network).__name__ in _WHOLE or hasattr(network, "patchifier"):
        return 1, 1, 1
    if hasattr(network, "patch_spatial"):
        return getattr(network, "patch_temporal", 1), network.patch_spatial, network.patch_spatial
    for name in ("patch_size", "patch"):
        size = getattr(network, name, None)
        if isinstance(size, int):
            deep = getattr(network, "patch_size_t", None)
            return (deep if isinstance(deep, int) else 1), size, size
        if isinstance(size, (tuple, list)) and all(isinstance(side, int) for side in size) and 1 < len(size) < 4:
            frames, height, width = (1, *size)[-3:]
            return frames, height, width
    return None
