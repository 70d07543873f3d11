"""What a routing policy is.

A layer's LoRAs are summed by role into two branches, subject and style. A policy says with what weights the branches
are added to the layer's output, ``F + w_subject h_subject + w_style h_style``, or replaces their deltas once and for
all. Policies are frozen dataclasses without state: what has to be remembered lives in the run's Router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..layers import Pairing, SegmentDeltas

# (subject, style) weights that give a layer to one of them.
SUBJECT = (1.0, 0.0)
STYLE = (0.0, 1.0)
ONE_EACH = Pairing()


@dataclass(frozen=True)
class StepContext:
    """Where in the run a decision is made.

    Attributes:
        step: index of the sampling step, from 0.
        steps: how many there are.
        sigma: noise level of the step.
        emphasis: how often the LoRAs' effect counts in the picture (:mod:`..emphasis`).
        schedule: how much of the model's own schedule lies behind at that noise level, 0 to 1, where that is known.
            A part of a run, an image that is only half noised and a single step know their place by it.
    """

    step: int
    steps: int
    sigma: float = 0.0
    emphasis: float = 1.0
    schedule: float | None = None

    @property
    def progress(self) -> float:
        """From 0 at pure noise towards 1 (K-LoRA's ``t / T``); the share of steps where the schedule is not known."""
        return self.step / max(1, self.steps) if self.schedule is None else self.schedule


@lru_cache(maxsize=1024)
def two_numbers(first: float, second: float, device: torch.device) -> Tensor:
    """``[2]`` float32, filled on the device: nothing is copied there."""
    # Not an inference tensor, so that calls that are differentiated can use it as well.
    with torch.inference_mode(False), torch.no_grad():
        pair = torch.full((2,), first, device=device)
        if second != first:
            pair[1].fill_(second)
    return pair


@dataclass(frozen=True)
class Policy:
    """Base of all policies."""

    name: ClassVar[str] = ""

    @property
    def own_emphasis(self) -> float:
        """How often the LoRAs' effect counts in the picture (:mod:`..emphasis`) unless the user says otherwise."""
        return 1.0

    @property
    def fades(self) -> bool:
        """Whether what it does, its own emphasis too, is done as far as both LoRAs are there (``Pairing.presence``)."""
        return False

    def settings(self) -> dict[str, Any]:
        """Name and settings, as JSON."""
        return {"policy": self.name, **asdict(self)}


@dataclass(frozen=True)
class ScoredPolicy(Policy):
    """Decides from the features each branch causes, per layer, step and sample.

    Attributes:
        hard: whether one branch takes all, so that a small change of the scores can turn the whole layer over.
    """

    hard: ClassVar[bool] = False

    @property
    def score(self) -> str:
        """Name of the score it compares, one of ``SCORES``."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int:
        """How many tokens of a layer are scored at most, spread over the picture; 0 scores all of them."""
        return 0

    def weights(
        self, log_ratio: Tensor, lean: Tensor | float, context: StepContext, pairing: Pairing = ONE_EACH
    ) -> tuple[Tensor, Tensor]:
        """Weights of the two branches, shaped as ``log_ratio``.

        Args:
            log_ratio: ``log d_c - log d_s``: how much further the subject moves the features than the style.
            lean: preference for the subject that was not measured, in the same unit; negative prefers the style.
            context: where in the run.
            pairing: what is known of the segment's LoRAs.
        """
        raise NotImplementedError

    def pair(self, measured: Tensor, lean: float, context: StepContext, pairing: Pairing = ONE_EACH) -> Tensor | None:
        """:meth:`weights` by arithmetic that is closed: few operations for a layer, on small tensors.

        Args:
            measured: float32: where the score is the energy, the norms ``||h||`` of subject, style, and the subject
                again ``[batch, 3]``, none of them 0; else the scores ``[batch, 2]``, or the same multiple of both.
            lean, context, pairing: as there.

        Returns:
            Both weights ``[batch, 2]``, or None where they are not known in this way.
        """
        return None


@dataclass(frozen=True)
class ScheduledPolicy(Policy):
    """Decides from the weights' statistics and the step alone: no features are looked at."""

    def prepare(self, segments: Sequence[SegmentDeltas], blocks: str = "") -> Any:
        """Statistics of all shared segments, once a model: handed back to :meth:`weights_at`.

        Args:
            segments: that both roles touch.
            blocks: whose blocks the model has, "SDXL" or "FLUX"; empty for others.
        """
        return None

    def weights_at(self, prepared: Any, index: int, context: StepContext) -> tuple[float, float]:
        """(subject, style) weights of the segment with that index."""
        raise NotImplementedError


@dataclass(frozen=True)
class StaticPolicy(Policy):
    """Merges the two branches of a segment into one delta, once; the model then runs at its own speed."""

    @property
    def is_sum(self) -> bool:
        """Whether the merge is the plain sum, which core can do from the files' own patches."""
        return False

    @property
    def exact_factors(self) -> bool:
        """Whether the merge is low-rank, so that it can be kept as factors."""
        return False

    def merge(self, segment: SegmentDeltas) -> Tensor | tuple[Tensor, Tensor]:
        """The merged delta of a segment: dense ``[out, in, *kernel]``, or exact factors ``(up, down)``."""
        raise NotImplementedError
