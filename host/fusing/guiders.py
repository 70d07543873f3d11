"""What we know of guiders: which models they sample with, and at what scale they guide."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher


def patchers_of(guider: Any) -> list[ModelPatcher]:
    """The patchers of a run's model, one a device (core's ``multigpu_clones``)."""
    return list(guider.model_options.get("multigpu_clones", {}).values()) or [guider.model_patcher]


def cfg_of(guider: Any, step: int, steps: int) -> float:
    """The scale of classifier-free guidance at a step.

    Guiders of other packs set ``cfg`` anew at every step, keep a list of it with one scale a step, or guide only
    between ``start_percent`` and ``end_percent``. Guiders that combine their passes in ways of their own have no
    ``cfg`` that is a scale: 1, as if they did not guide, so that none of their passes is told apart.
    """
    cfg: Any = getattr(guider, "cfg", 1.0)
    if isinstance(cfg, (list, tuple)) and cfg:
        cfg = cfg[min(step, len(cfg) - 1)]
    start, end = getattr(guider, "start_percent", 0.0), getattr(guider, "end_percent", 1.0)
    along = step / max(1, steps)
    if isinstance(start, float | int) and isinstance(end, float | int) and not start <= along <= end:
        return 1.0
    try:
        return float(cfg)
    except (TypeError, ValueError, RuntimeError):
        return 1.0


def is_steady(guider: Any) -> bool:
    """Whether the scale stays what it is for the whole run, as far as anybody can tell beforehand."""
    own = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise if guider is not None else True
    return own and not isinstance(getattr(guider, "cfg", 1.0), (list, tuple))
