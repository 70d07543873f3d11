"""One sampling run under guidance: its networks, its corrections, its telemetry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

from ...guidance.corrections import CorrectionResult, CorrectionState, X0Correction
from ...guidance.guard import HeldOutGuard
from ...guidance.losses import SimilarityObjective
from ...guidance.paper import PaperCorrection
from ...guidance.schedules import step_of_sigma
from ..vision.autograd import gradients_enabled, normal_copy
from ..vision.decoders import DecoderLadder
from ..vision.encoders import RunEncoder, open_encoder
from .denoiser import Denoiser, renoised
from .memory import Fallbacks, guidance_memory, is_out_of_memory
from .plan import GuidancePlan, TermRequest, similarity_terms
from .telemetry import MIB, Meter, StepEvents

Predict = Callable[..., torch.Tensor]


class GuidedRun:
    """One sampling run: networks, reference embeddings, telemetry. Ends with `close`.

    sigmas: the run's schedule. model: the model being sampled, a core BaseModel; x0 mode without time travel reads its
    latent format only.
    """

    def __init__(self, plan: GuidancePlan, sigmas: list[float], latent_format: Any, model: Any = None) -> None:
        self._meter = Meter()
        self._estimate = 0.0
        self._plan = plan
        self._sigmas = sigmas
        self._latent_format = latent_format
        self._model = model
        self._decoders = DecoderLadder(plan.options.decoder, plan.vae, latent_format)
        self._correction = plan.correction()
        self._requests = [*plan.terms(), *plan.watched()]
        self._encoders: dict[str, RunEncoder] = {
            name: open_encoder(plan.encoder(name), f"{name}_encoder")
            for name in dict.fromkeys(request.encoder for request in self._requests)
        }
        self._objective: SimilarityObjective | None = None
        self._states: dict[int, CorrectionState] = {}
        self._guards: dict[int, HeldOutGuard] = {}
        self._fallbacks = Fallbacks(self._decoders)
        self._evaluations: list[dict[str, Any]] = []
        self._events = StepEvents(self._header(), self._evaluations)
        self._final: dict[str, list[float | None]] | None = None

    def memory(self, shape: tuple[int, ...]) -> float:
        """Bytes that a correction of latents of this shape takes, roughly."""
        crops = self._plan.options.crops
        self._estimate = guidance_memory(self._decoders.current, self._encoders.values(), crops, shape)
        return self._estimate

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

        steps = len(self._sigmas) - 1
        # Reading sigma waits for the device, but the step must be known for samplers with sigmas of their own too.
        step = step_of_sigma(float(sigma.max()), self._sigmas)
        if not self._is_guided(step, steps, len(x)):
            self._events.tick()  # the last guided step may not have been told
            return denoise(x)
        if isinstance(self._correction, X0Correction):
            here, following = self._sigmas[step : step + 2]
            travelled = x
            for repeat in range(self._plan.options.time_travel if following > 0.0 else 0):
                x0 = self.correct(denoise(travelled), step)
                travelled = renoised(self._model, travelled, x0, here, following, (seed or 0, step, repeat))
            denoised = self.correct(denoise(travelled), step)
            # The sampler steps from x; this makes its Euler step end where one from the travelled x would.
            return denoised if travelled is x else denoised + (following / (here - following)) * (travelled - x)
        denoiser = Denoiser(self._model, predict, sigma, model_options, seed)
        try:
            corrected = self._correct_noisy(denoiser, x, step)
        finally:
            denoiser.close()
        return denoise(x) if corrected is None else corrected

    def correct(self, denoised: torch.Tensor, step: int) -> torch.Tensor:
        """The predicted clean latent [B, C, ...], corrected at the prediction."""
        assert self._objective is not None and isinstance(self._correction, X0Correction)
        self._meter.begin()
        results: list[CorrectionResult | None] = []
        # Sample by sample: memory stays that of one picture, and a batch gives what its members give alone.
        for index, x0 in enumerate(denoised.split(1)):
            results.append(None if self._stopped(index) else self._attempt(x0, index))
        corrected = [old if new is None else new.x0 for old, new in zip(denoised.split(1), results, strict=True)]
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
        self._final = {name: [_number(score[name]) for score in scores] for name in scores[0]}

    def close(self) -> None:
        """Free everything that was made for the run."""
        self._decoders.current.close()
        for encoder in self._encoders.values():
            encoder.close()
        self._objective = None
        self._states.clear()
        self._meter.stop()

    def report(self) -> dict[str, Any]:
        """The run in numbers, ready for JSON; lists inside evaluations and "final" have one entry per sample.

        "evaluations": each guided evaluation's step, sigma, similarities before its correction, RMS of gradient and
        displacement (latent units), whether it was skipped (zero or non-finite gradient; no memory; stopped by the
        guard), whether the guard had stopped it by then, its seconds and its peak of memory. "window": first step that
        may be guided, and the step after the last. "seconds": of all evaluations; "run_seconds": of the whole run.
        "memory": see `Meter.memory`, and the "estimated_mb" that core was told. "final": the similarities of the
        finished pictures, None unless asked for, or if the run did not finish. "fallbacks": what was given up for lack
        of memory. "stopped": samples at which the held-out guard ended it.
        """
        return {
            **self._header(),
            "decoder": self._decoders.current.name,
            "evaluations": self._evaluations,
            "skipped": sum(sum(evaluation["skipped"]) for evaluation in self._evaluations),
            "fallbacks": self._fallbacks.messages,
            "stopped": [index for index, guard in self._guards.items() if guard.stopped],
            "seconds": round(sum(evaluation["seconds"] for evaluation in self._evaluations), 4),
            "final": self._final,
            "run_seconds": self._meter.run_seconds(),
            "memory": {**self._meter.memory(), "estimated_mb": round(self._estimate / MIB, 1)},
        }

    def _header(self) -> dict[str, Any]:
        """What the report says before the run."""
        plan, window, steps = self._plan, self._plan.window, len(self._sigmas) - 1
        return {
            "version": 1,
            "guided": True,
            "settings": {
                "guidance_strength": plan.guidance_strength,
                "guidance_start": window.start,
                "guidance_end": window.end,
                "guidance_every": window.every,
                **vars(plan.options),
            },
            "terms": [_described(request) for request in plan.terms()],
            "held_out": [_described(request) for request in plan.watched()],
            "steps": steps,
            "window": list(plan.span(steps)),
        }

    def _is_guided(self, step: int, steps: int, batch: int) -> bool:
        if self._objective is None or self._fallbacks.gave_up or not self._plan.is_guided(step, steps):
            return False
        return not all(self._stopped(index) for index in range(batch))

    def _stopped(self, index: int) -> bool:
        return self._plan.options.guard and index in self._guards and self._guards[index].stopped

    def _attempt(self, x0: torch.Tensor, index: int) -> CorrectionResult | None:
        """Correct one sample, with cheaper means when memory runs out; None when all are used up."""
        assert self._objective is not None and isinstance(self._correction, X0Correction)
        while not self._fallbacks.gave_up:
            state = self._states.setdefault(index, self._correction.start())
            try:
                with gradients_enabled():
                    decode = self._watched(self._decoders.current)
                    return self._correction(normal_copy(x0), decode, self._objective, state)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except clause: the error's traceback holds the very tensors that are to go.
            self._correction = self._fallbacks.next(self._correction)
        return None

    def _correct_noisy(self, denoiser: Denoiser, x: torch.Tensor, step: int) -> torch.Tensor | None:
        """The corrected prediction at x through the denoiser; None when there is no memory for it."""
        assert self._objective is not None
        self._meter.begin()
        sigmas = self._sigmas[step], self._sigmas[step + 1]
        while not self._fallbacks.gave_up:
            assert isinstance(self._correction, PaperCorrection)
            try:
                with gradients_enabled():
                    decode = self._watched(self._decoders.current)
                    result = self._correction(normal_copy(x), denoiser, decode, self._objective, *sigmas)
                self._record(step, [result.sample(index) for index in range(len(x))])
                return result.x0
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._correction = self._fallbacks.next(self._correction)
        return None

    def _watched(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function, raising core's interrupt before it starts: a correction may take as long as many steps."""

        def call(x: torch.Tensor) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            result = function(x)
            self._meter.look()
            return result

        return call

    def _record(self, step: int, results: list[CorrectionResult | None]) -> None:
        names = [request.name for request in self._requests]
        evaluation: dict[str, Any] = {
            "step": step,
            "sigma": self._sigmas[step],
            "similarities": {n: [_number(r.similarities[n]) if r else None for r in results] for n in names},
            "gradient_rms": [_number(r.gradient_rms) if r else None for r in results],
            "displacement_rms": [_number(r.displacement_rms) if r else 0.0 for r in results],
            "skipped": [bool(r.skipped) if r else True for r in results],
        }
        for index in range(len(results)):
            held_out = [evaluation["similarities"][request.name][index] for request in self._plan.watched()]
            if held_out and None not in held_out:
                self._guards.setdefault(index, HeldOutGuard()).watch(sum(held_out) / len(held_out))
        evaluation["stopped"] = [self._stopped(index) for index in range(len(results))]
        # Taken last: reading the numbers above has waited for the device.
        evaluation |= self._meter.end()
        self._evaluations.append(evaluation)
        self._events.tick()


def _described(request: TermRequest) -> dict[str, Any]:
    return {"name": request.name, "role": request.role, "weight": request.weight}


def _number(value: torch.Tensor) -> float | None:
    """A JSON number; JSON has none for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
