"""One sampling run under guidance: its networks and its corrections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import torch

from ...guidance.corrections import CorrectionResult, CorrectionState, X0Correction
from ...guidance.guard import HeldOutGuard
from ...guidance.losses import SimilarityObjective
from ...guidance.paper import PaperCorrection
from ...guidance.schedules import step_of_sigma
from ..vision import DecoderLadder, RunEncoder, normal_copy, open_encoder
from .denoiser import Denoiser, names_of, renoised
from .memory import Correction, Fallbacks, guidance_memory
from .plan import GuidancePlan
from .telemetry import Telemetry
from .terms import similarity_terms

Predict = Callable[..., torch.Tensor]


class GuidedRun:
    """One sampling run: networks, reference embeddings, corrections. Ends with `close`.

    sigmas: the run's schedule. model: the model being sampled, a core BaseModel; x0 mode without time travel reads its
    latent format only. noise: [B, C, ...] that the samples start from. beside: gives the other networks of the run
    (ControlNets), once it has begun.
    """

    def __init__(
        self,
        plan: GuidancePlan,
        sigmas: list[float],
        latent_format: Any,
        model: Any = None,
        noise: torch.Tensor | None = None,
        beside: Callable[[], list[torch.nn.Module]] = list,
    ) -> None:
        self._names = [] if noise is None else names_of(noise)
        self._beside = beside
        self._telemetry = Telemetry(plan, sigmas)
        self._plan = plan
        self._sigmas = sigmas
        self._latent_format = latent_format
        self._model = model
        self._decoders = DecoderLadder(plan.options.decoder, plan.vae, latent_format)
        self._fallbacks = Fallbacks(self._decoders, plan.correction())
        self._requests = [*plan.terms(), *plan.watched()]
        self._encoders: dict[str, RunEncoder] = {
            name: open_encoder(plan.encoder(name), f"{name}_encoder")
            for name in dict.fromkeys(request.encoder for request in self._requests)
        }
        self._objective: SimilarityObjective | None = None
        self._states: dict[int, CorrectionState] = {}
        self._guards: dict[int, HeldOutGuard] = {}

    def memory(self, shape: tuple[int, ...]) -> float:
        """Bytes that a correction of latents of this shape takes, roughly."""
        crops = self._plan.options.crops
        estimate = guidance_memory(self._decoders.current, self._encoders.values(), crops, shape)
        self._telemetry.estimate = estimate
        return estimate

    def encode_references(self) -> None:
        """Embed the references, unless they are known from an earlier run."""
        terms = similarity_terms(self._plan, self._requests, self._encoders)
        embed = {name: self._watched(encoder.embed) for name, encoder in self._encoders.items()}
        self._objective = SimilarityObjective(embed, terms)

    def predict(
        self, predict: Predict, x: torch.Tensor, sigma: torch.Tensor, model_options: Any, seed: int | None
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: the predicted clean latent [B, C, ...], corrected in guided steps."""

        def denoise(noisy: torch.Tensor) -> torch.Tensor:
            return predict(noisy, sigma, model_options, seed)

        # Reading sigma waits for the device, but the step must be known for samplers with sigmas of their own too.
        step = step_of_sigma(float(sigma.max()), self._sigmas)
        if not self._is_guided(step, len(x)):
            self._telemetry.tick()  # the last guided step may not have been told
            return denoise(x)
        if self._plan.options.is_paper:
            denoiser = Denoiser(self._model, predict, sigma, model_options, seed, self._beside())
            try:
                corrected = self._correct_noisy(denoiser, x, step)
            finally:
                denoiser.close()
            return denoise(x) if corrected is None else corrected
        here, following = self._sigmas[step : step + 2]
        travelled = x
        for repeat in range(self._plan.options.time_travel if following > 0.0 else 0):
            x0 = self.correct(denoise(travelled), step)
            repetition = (seed or 0, step, repeat)
            travelled = renoised(self._model, travelled, x0, here, following, repetition, self._names)
        denoised = self.correct(denoise(travelled), step)
        # The sampler steps from x; this makes its Euler step end where one from the travelled x would.
        return denoised if travelled is x else denoised + (following / (here - following)) * (travelled - x)

    def correct(self, denoised: torch.Tensor, step: int) -> torch.Tensor:
        """The predicted clean latent [B, C, ...], corrected at the prediction."""
        self._telemetry.meter.begin()
        # Sample by sample: memory stays that of one picture, and a batch gives what its members give alone.
        samples = denoised.split(1)
        results = [
            None if self._stopped(index) else self._fallbacks.attempt(partial(self._at_prediction, x0, index))
            for index, x0 in enumerate(samples)
        ]
        corrected = [old if new is None else new.x0 for old, new in zip(samples, results, strict=True)]
        self._record(step, results)
        return torch.cat(corrected)

    def score(self, samples: torch.Tensor) -> None:
        """Take the similarities of the finished latents, given in the VAE's space, with the run's own decoder."""
        if self._objective is None or self._fallbacks.gave_up or not self._plan.options.final_scores:
            return
        decoder = self._decoders.current
        patchers = [encoder.patcher for encoder in self._encoders.values()]
        with torch.inference_mode(False), torch.no_grad():
            comfy.model_management.load_models_gpu([*patchers, *([decoder.patcher] if decoder.patcher else [])])
            latents = self._latent_format.process_in(normal_copy(samples))
            scores = [self._objective.similarities(decoder(latent)) for latent in latents.split(1)]
        self._telemetry.finish(scores)

    def stop(self) -> None:
        """The run ends before its time: the page is told."""
        self._telemetry.stop()

    def close(self) -> None:
        """Free everything that was made for the run."""
        self._decoders.current.close()
        for encoder in self._encoders.values():
            encoder.close()
        self._objective = None
        self._states.clear()
        self._telemetry.meter.stop()

    def report(self) -> dict[str, Any]:
        """The run in numbers, see `Telemetry.report`; complete once the run is closed."""
        stopped = [index for index, guard in self._guards.items() if guard.stopped]
        return self._telemetry.report(self._decoders.current.name, self._fallbacks.messages, stopped)

    def _is_guided(self, step: int, batch: int) -> bool:
        if self._objective is None or self._fallbacks.gave_up:
            return False
        if not self._plan.is_guided(step, len(self._sigmas) - 1):
            return False
        return not all(self._stopped(index) for index in range(batch))

    def _stopped(self, index: int) -> bool:
        return self._plan.options.guard and index in self._guards and self._guards[index].stopped

    def _at_prediction(self, x0: torch.Tensor, index: int, correction: Correction) -> CorrectionResult:
        """One sample corrected at the predicted clean latent."""
        assert self._objective is not None and isinstance(correction, X0Correction)
        state = self._states.setdefault(index, correction.start())
        return correction(normal_copy(x0), self._watched(self._decoders.current), self._objective, state)

    def _through_denoiser(
        self, denoiser: Denoiser, x: torch.Tensor, step: int, correction: Correction
    ) -> CorrectionResult:
        """A batch corrected at the noisy latent."""
        assert self._objective is not None and isinstance(correction, PaperCorrection)
        decode, sigmas = self._watched(self._decoders.current), self._sigmas[step : step + 2]
        return correction(normal_copy(x), denoiser, decode, self._objective, *sigmas)

    def _correct_noisy(self, denoiser: Denoiser, x: torch.Tensor, step: int) -> torch.Tensor | None:
        """The corrected prediction at x through the denoiser; None when there is no memory for it."""
        self._telemetry.meter.begin()
        result = self._fallbacks.attempt(partial(self._through_denoiser, denoiser, x, step))
        if result is None:
            return None
        self._record(step, [result.sample(index) for index in range(len(x))])
        return result.x0

    def _watched(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function, raising core's interrupt before it starts: a correction may take as long as many steps."""

        def call(x: torch.Tensor) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            result = function(x)
            self._telemetry.meter.look()
            return result

        return call

    def _record(self, step: int, results: list[CorrectionResult | None]) -> None:
        evaluation = self._telemetry.evaluation(step, results)
        samples = range(len(results))
        for index in samples:
            held_out = [evaluation["similarities"][request.name][index] for request in self._plan.watched()]
            if held_out and None not in held_out:
                self._guards.setdefault(index, HeldOutGuard()).watch(sum(held_out) / len(held_out))
        self._telemetry.add(evaluation, [self._stopped(index) for index in samples])
