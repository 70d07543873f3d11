"""What a guided run tells: its steps, to the page that queued it, its seconds and peaks of memory, and its report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import psutil
import torch

from ...guidance.corrections import CorrectionResult
from ..core import Story
from .plan import GuidancePlan, TermRequest

EVENT = "lora_conductor.guidance"
INTERVAL = 0.25  # seconds between messages
MIB = 2**20


class StepEvents:
    """Tells one run's guided evaluations to the page, several in a message if need be.

    header: what `Telemetry.report` says before the run. evaluations: its list of them, which grows.
    """

    def __init__(self, header: dict[str, Any], evaluations: Sequence[dict[str, Any]]) -> None:
        self._header = header
        self._evaluations = evaluations
        self._story = Story(EVENT)
        self._told = 0
        self._next = 0.0

    def tick(self) -> None:
        """Tell what is new, unless something was just told."""
        now = time.monotonic()
        if now < self._next or self._told == len(self._evaluations):
            return
        self._next = now + INTERVAL
        self._tell()

    def stop(self) -> None:
        """The run ended before its time."""
        self._tell(stopped=True)

    def _tell(self, **more: Any) -> None:
        new = list(self._evaluations[self._told :])
        header = self._header if self._told == 0 else {}
        self._story.tell({**header, "first": self._told, "evaluations": new, **more})
        self._told = len(self._evaluations)


class Meter:
    """Clock and memory of one run, from its making to `stop`; corrections lie between `begin` and `end`.

    On CUDA memory is what torch has allocated, by its own peak counter, which is set back on the way. Elsewhere it is
    the resident set of the process, seen at each `look`: ask for one while a network's activations are alive.
    """

    def __init__(self) -> None:
        self._device = comfy.model_management.get_torch_device()
        self._cuda = self._device.type == "cuda"
        self._started = self._began = time.perf_counter()
        self._stopped: float | None = None
        self._guided = self._unguided = self._peak = 0
        self._reset()

    def begin(self) -> None:
        """A correction begins."""
        self._note_unguided()
        self._reset()
        self._began = time.perf_counter()

    def look(self) -> None:
        """Take note of the memory in use."""
        self._peak = max(self._peak, self._in_use(peak=True))

    def end(self) -> dict[str, float]:
        """The correction is over, its results read: its "seconds", and "memory_mb", the peak, weights included."""
        self.look()
        spent = {"seconds": round(time.perf_counter() - self._began, 4), "memory_mb": round(self._peak / MIB, 1)}
        self._guided = max(self._guided, self._peak)
        self._reset()
        return spent

    def stop(self) -> None:
        """The run is over."""
        if self._stopped is None:
            self._note_unguided()
            self._stopped = time.perf_counter()

    def run_seconds(self) -> float:
        """Seconds of the whole run, corrections included."""
        end = time.perf_counter() if self._stopped is None else self._stopped
        return round(end - self._started, 4)

    def memory(self) -> dict[str, Any]:
        """Peaks of the run in MiB: "guided" of its corrections, "unguided" of the rest, "over_unguided" the difference,
        0 at least; "measure" says of what."""
        return {
            "measure": "allocated on the device" if self._cuda else "resident set of the process",
            "guided_mb": round(self._guided / MIB, 1),
            "unguided_mb": round(self._unguided / MIB, 1),
            "over_unguided_mb": round(max(self._guided - self._unguided, 0) / MIB, 1),
        }

    def _note_unguided(self) -> None:
        self.look()
        # A process keeps much of what its first correction freed: from then on its size no longer tells of the rest.
        if self._cuda or not self._guided:
            self._unguided = max(self._unguided, self._peak)

    def _reset(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._peak = self._in_use(peak=False)

    def _in_use(self, peak: bool) -> int:
        """Bytes in use; on CUDA, if asked, the most since the counter was set back."""
        if self._cuda:
            count = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return count(self._device)
        return psutil.Process().memory_info().rss


class Telemetry:
    """One run in numbers: told step by step while it lasts, and as its report.

    sigmas: the run's schedule. meter: of the run, from the making of this on. estimate: the bytes that core was told a
    correction takes.
    """

    def __init__(self, plan: GuidancePlan, sigmas: Sequence[float]) -> None:
        self.meter = Meter()
        self.estimate = 0.0
        self._plan = plan
        self._sigmas = sigmas
        self._evaluations: list[dict[str, Any]] = []
        self._events = StepEvents(self._header(), self._evaluations)
        self._final: dict[str, list[float | None]] | None = None

    def tick(self) -> None:
        """Send what was not told yet, unless something was just sent."""
        self._events.tick()

    def stop(self) -> None:
        """The run ended before its time; the page is told."""
        self._events.stop()

    def evaluation(self, step: int, results: Sequence[CorrectionResult | None]) -> dict[str, Any]:
        """What a guided evaluation found, a result for each sample, None for those that were left out."""
        names = [request.name for request in (*self._plan.terms(), *self._plan.watched())]
        return {
            "step": step,
            "sigma": self._sigmas[step],
            "similarities": {n: [_number(r.similarities[n]) if r else None for r in results] for n in names},
            "gradient_rms": [_number(r.gradient_rms) if r else None for r in results],
            "displacement_rms": [_number(r.displacement_rms) if r else 0.0 for r in results],
            "skipped": [bool(r.skipped) if r else True for r in results],
        }

    def add(self, evaluation: dict[str, Any], stopped: list[bool]) -> None:
        """Take an evaluation that is over, and which samples the guard has stopped by now; tell it."""
        # The meter last: reading the numbers of the evaluation has waited for the device.
        self._evaluations.append({**evaluation, "stopped": stopped, **self.meter.end()})
        self.tick()

    def finish(self, scores: Sequence[dict[str, torch.Tensor]]) -> None:
        """Take the similarities of each finished picture."""
        self._final = {name: [_number(score[name]) for score in scores] for name in scores[0]}

    def report(self, decoder: str, fallbacks: list[str], stopped: list[int]) -> dict[str, Any]:
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
            "decoder": decoder,
            "evaluations": self._evaluations,
            "skipped": sum(sum(evaluation["skipped"]) for evaluation in self._evaluations),
            "fallbacks": fallbacks,
            "stopped": stopped,
            "seconds": round(sum(evaluation["seconds"] for evaluation in self._evaluations), 4),
            "final": self._final,
            "run_seconds": self.meter.run_seconds(),
            "memory": {**self.meter.memory(), "estimated_mb": round(self.estimate / MIB, 1)},
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


def _described(request: TermRequest) -> dict[str, Any]:
    return {"name": request.name, "role": request.role, "weight": request.weight}


def _number(value: torch.Tensor) -> float | None:
    """A JSON number; JSON has none for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
