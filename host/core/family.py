"""Which family a model is of, as its configuration says: many share a class."""

from __future__ import annotations

from torch import nn

# Configurations of the host with the blocks that a published method has told apart.
_BLOCKS = {
    "SDXL": "SDXL",
    "SDXL_instructpix2pix": "SDXL",
    "Flux": "FLUX",
    "FluxInpaint": "FLUX",
    "FluxSchnell": "FLUX",
}


def family_of(model: nn.Module) -> str:
    """What ComfyUI calls the model's family, e.g. ``SD15``, ``Flux`` or ``ZImage``."""
    config = getattr(model, "model_config", None)
    return type(model if config is None else config).__name__


def blocks_of(model: nn.Module) -> str:
    """Whose blocks it has: ``SDXL`` or ``FLUX``; empty for all other families."""
    return _BLOCKS.get(family_of(model), "")
