"""Memory of guidance: estimated and announced before sampling, and what to give up when it runs out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import comfy.model_management
import comfy.sampler_helpers

from ...guidance.corrections import CorrectionResult, X0Correction
from ...guidance.paper import PaperCorrection
from ...guidance.views import Views
from ..core import logger
from ..vision import Decoder, DecoderLadder, RunEncoder, gradients_enabled

# Activations of a vision transformer for one picture, in units of its weights: about 0.4 for ViT-L/14 at 224 pixels
# and 0.9 for ViT-S/16, from tokens * 20 * width floats a layer.
ENCODER_ACTIVATIONS = 1.0
Correction = X0Correction | PaperCorrection


def guidance_memory(decoder: Decoder, encoders: Iterable[RunEncoder], crops: int, shape: tuple[int, ...]) -> float:
    """Bytes a correction of one latent of `shape` takes besides the networks' weights, roughly.

    Encoders and decoder are gone through one after the other, so the largest counts, and the picture's graph with it.
    """
    encoding = [ENCODER_ACTIVATIONS * (1 + crops) * encoder.patcher.model_size() for encoder in encoders]
    return decoder.memory(shape) + max(encoding)


def announcing(extra: float) -> Callable[..., Any]:
    """A PREPARE_SAMPLING wrapper that has core leave room for `extra` bytes besides its own estimate of sampling.

    Core has no argument for it, but estimates by the latent's shape: it is told a taller one.
    """

    def prepare(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        _, minimum = comfy.sampler_helpers.estimate_memory(model, noise_shape, conds)
        height = math.ceil(noise_shape[-2] * (1.0 + extra / max(minimum, 1.0)))
        return executor(model, [*noise_shape[:-2], height, noise_shape[-1]], conds, *args, **kwargs)

    return prepare


def is_out_of_memory(error: Exception) -> bool:
    """Whether core takes this for lack of device memory."""
    if hasattr(comfy.model_management, "is_oom"):
        return bool(comfy.model_management.is_oom(error))
    kind = comfy.model_management.OOM_EXCEPTION
    return kind is not Exception and isinstance(error, kind)


class Fallbacks:
    """What a run gives up, one thing after the other, when memory runs out.

    correction: the one to go on with. messages: what was given up so far, in words. gave_up: nothing is left; the run
    goes on without guidance.
    """

    def __init__(self, decoders: DecoderLadder, correction: Correction) -> None:
        self._decoders = decoders
        self.correction = correction
        self.messages: list[str] = []
        self.gave_up = False

    def attempt(self, correct: Callable[[Correction], CorrectionResult]) -> CorrectionResult | None:
        """The result of `correct(correction)`, with cheaper means when memory runs out; None when all are used up."""
        while not self.gave_up:
            try:
                with gradients_enabled():
                    return correct(self.correction)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except clause: the error's traceback holds the very tensors that are to go.
            self._step_down()
        return None

    def _step_down(self) -> None:
        """Give up one thing: the decoder for the next, then crops, then guidance."""
        comfy.model_management.soft_empty_cache()
        before = self._decoders.current.name
        if self._decoders.step_down():
            patcher = self._decoders.current.patcher
            if patcher is not None:
                comfy.model_management.load_models_gpu([patcher])
            self._say(f"out of memory with decoder: {before}; going on with {self._decoders.current.name}")
        elif isinstance(self.correction, X0Correction) and self.correction.views.crops:
            self._say(f"out of memory with {self.correction.views.crops} crops; going on with whole pictures only")
            self.correction = dataclasses.replace(self.correction, views=Views())
        else:
            self._say("out of memory with the cheapest settings; the rest of the run is not guided")
            self.gave_up = True

    def _say(self, message: str) -> None:
        logger.warning("Metric guidance: %s.", message)
        self.messages.append(message)
