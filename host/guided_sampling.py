"""Sampling with metric guidance: core's own sampling path, with each prediction corrected on the way."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..guidance.corrections import CorrectionResult, X0Correction
from ..guidance.losses import SimilarityObjective, SimilarityTerm
from ..guidance.schedules import step_of_sigma
from .autograd import gradients_enabled, normal_copy
from .decode import LatentDecoder, check_latent_shape
from .encoders import RunEncoder, open_encoder
from .guidance_plan import GuidancePlan

SAMPLER_NAMES: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULER_NAMES: list[str] = comfy.samplers.KSampler.SCHEDULERS

_KEY = "lora_conductor.guidance"


def sample(
    model: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: dict[str, Any],
    denoise: float,
    plan: GuidancePlan,
) -> tuple[dict[str, Any], str]:
    """KSampler's arguments and a guidance plan -> LATENT and the run's scores as JSON (see `GuidedRun.report`).

    With the plan off this is KSampler itself. Raises ConductorError, before sampling, for inputs that cannot work.
    """
    from nodes import common_ksampler  # ComfyUI's; its import loads every core node, so not at our import

    reports: list[dict[str, Any]] = []
    if not plan.is_off:
        plan.check(model.get_model_object("latent_format"))
        model = guide(model, plan, reports)
    (latent,) = common_ksampler(
        model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
    )
    report = reports[0] if reports else {"version": 1, "guided": False}
    return latent, json.dumps(report, allow_nan=False)


def guide(model: Any, plan: GuidancePlan, reports: list[dict[str, Any]]) -> Any:
    """A clone of the MODEL whose sampling runs are guided; each run that ends appends its report to `reports`."""

    def run_guided(executor: Any, noise: torch.Tensor, latent_image: Any, sampler: Any, sigmas: Any, *args, **kwargs):
        guider = executor.class_obj
        check_latent_shape(tuple(noise.shape))
        run = GuidedRun(plan, sigmas.tolist(), model.get_model_object("latent_format"))
        # The guider's options are a copy made for this run: what is hung in here is gone when it ends, and two runs of
        # one model never share it.
        options = guider.model_options
        guider.model_options = comfy.model_patcher.set_model_options_post_cfg_function(options.copy(), run.correct)
        try:
            run.encode_references()
            output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            run.score(output)
            return output
        finally:
            guider.model_options = options
            run.close()
            reports.append(run.report())

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, run_guided)
    # Loaded and accounted for together with the model, so that core does not offload it under the sampler's feet.
    sources = (plan.vae, plan.clip_encoder, plan.dino_encoder)
    patched.set_additional_models(_KEY, [source.patcher for source in sources if source is not None])
    return patched


class GuidedRun:
    """One sampling run under guidance: networks, reference embeddings, telemetry. Ends with `close`."""

    def __init__(self, plan: GuidancePlan, sigmas: list[float], latent_format: Any) -> None:
        self._plan = plan
        self._sigmas = sigmas
        self._decoder = LatentDecoder(plan.vae, latent_format)
        self._correction = X0Correction(plan.guidance_strength)
        self._requests = plan.terms()
        used = {request.encoder for request in self._requests}
        sources = {"clip": plan.clip_encoder, "dino": plan.dino_encoder}
        self._encoders: dict[str, RunEncoder] = {
            name: open_encoder(source, f"{name}_encoder") for name, source in sources.items() if name in used
        }
        self._objective: SimilarityObjective | None = None
        self._evaluations: list[dict[str, Any]] = []
        self._final: dict[str, list[float]] | None = None

    def encode_references(self) -> None:
        """Embed the reference pictures, once a run."""
        # Outside inference mode, also for loading: weights moved to the device here stay fit for gradients.
        with torch.inference_mode(False), torch.no_grad():
            comfy.model_management.load_models_gpu([encoder.patcher for encoder in self._encoders.values()])
            terms = []
            for request in self._requests:
                image = normal_copy(self._plan.reference(request.role))[..., :3].movedim(-1, 1)
                reference = self._encoders[request.encoder].embed(image)
                terms.append(SimilarityTerm(request.name, request.encoder, reference, request.weight))
        embed = {name: encoder.embed for name, encoder in self._encoders.items()}
        self._objective = SimilarityObjective(embed, terms)

    def correct(self, args: dict[str, Any]) -> torch.Tensor:
        """Post-CFG function: the predicted clean latent [B, C, ...], corrected in guided steps."""
        denoised: torch.Tensor = args["denoised"]
        steps = len(self._sigmas) - 1
        # Reading sigma waits for the device, but the step must be known for samplers with sigmas of their own too.
        sigma = float(args["sigma"].max())
        step = step_of_sigma(sigma, self._sigmas)
        if self._objective is None or not self._plan.window.is_active(step, steps):
            return denoised
        started = time.perf_counter()
        results = []
        with gradients_enabled():
            # Sample by sample: memory stays that of one picture, and a batch gives what its members give alone.
            for x0 in normal_copy(denoised).split(1):
                comfy.model_management.throw_exception_if_processing_interrupted()
                results.append(self._correction(x0, self._decoder, self._objective))
        corrected = torch.cat([result.x0 for result in results])
        self._record(step, sigma, results, started)
        return corrected

    def score(self, samples: torch.Tensor) -> None:
        """Take the similarities of the finished latents, given in the VAE's space."""
        if self._objective is None:
            return
        patchers = [self._decoder.patcher, *(encoder.patcher for encoder in self._encoders.values())]
        with torch.inference_mode(False), torch.no_grad():
            comfy.model_management.load_models_gpu(patchers)
            images = (self._decoder.decode_samples(sample) for sample in normal_copy(samples).split(1))
            scores = [self._objective.similarities(image) for image in images]
        self._final = _by_term(scores)

    def close(self) -> None:
        """Free everything that was made for the run."""
        self._decoder.close()
        for encoder in self._encoders.values():
            encoder.close()
        self._objective = None

    def report(self) -> dict[str, Any]:
        """The run in numbers, ready for JSON; lists inside evaluations and "final" have one entry per sample.

        "evaluations": each guided evaluation's step, sigma, similarities before its correction, RMS of gradient and
        displacement (latent units), whether it was skipped (zero or non-finite gradient) and its seconds.
        "final": the similarities of the finished pictures, None if the run did not finish.
        """
        plan = self._plan
        return {
            "version": 1,
            "guided": True,
            "settings": {
                "guidance_strength": plan.guidance_strength,
                "guidance_start": plan.window.start,
                "guidance_end": plan.window.end,
                "guidance_every": plan.window.every,
            },
            "terms": [{"name": r.name, "role": r.role, "weight": r.weight} for r in self._requests],
            "steps": len(self._sigmas) - 1,
            "evaluations": self._evaluations,
            "skipped": sum(sum(evaluation["skipped"]) for evaluation in self._evaluations),
            "seconds": round(sum(evaluation["seconds"] for evaluation in self._evaluations), 4),
            "final": self._final,
        }

    def _record(self, step: int, sigma: float, results: list[CorrectionResult], started: float) -> None:
        evaluation = {
            "step": step,
            "sigma": sigma,
            "similarities": _by_term([result.similarities for result in results]),
            "gradient_rms": [_number(result.gradient_rms) for result in results],
            "displacement_rms": [_number(result.displacement_rms) for result in results],
            "skipped": [bool(result.skipped) for result in results],
        }
        # Taken last: reading the numbers above has waited for the device.
        evaluation["seconds"] = round(time.perf_counter() - started, 4)
        self._evaluations.append(evaluation)


def _by_term(scores: list[dict[str, torch.Tensor]]) -> dict[str, list[Any]]:
    return {name: [_number(score[name]) for score in scores] for name in scores[0]}


def _number(value: torch.Tensor) -> float | None:
    """A JSON number; JSON has none for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
