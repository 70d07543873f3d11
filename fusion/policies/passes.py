"""Policies that run the model with one role's LoRAs at a time: LoRA Switch and LoRA Composite (arXiv 2402.16843)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..roles import ROLES
from .base import Policy, StepContext
from .registry import listed


@dataclass(frozen=True)
class PassPolicy(Policy):
    """Decides for the whole model: which LoRAs are on in which pass. The outputs of a step's passes are averaged.

    Unlike the other policies it also turns off the layers that only the resting LoRA touches.
    """

    def passes(self, context: StepContext) -> tuple[str, ...]:
        """The role of each pass of a step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Solo(PassPolicy):
    """One role's LoRAs alone: for calibration and for looking at."""

    name: ClassVar[str] = "solo"

    role: str = ROLES[0]

    def passes(self, context: StepContext) -> tuple[str, ...]:
        return (self.role,)


@listed(16)
@dataclass(frozen=True)
class Switch(PassPolicy):
    """LoRA Switch: one LoRA at a time, the subject first, changing every ``tau`` steps (5 in the paper)."""

    name: ClassVar[str] = "switch"

    tau: int = 5

    def __post_init__(self) -> None:
        if self.tau < 1:
            raise ValueError(f"tau must be at least 1 step, got {self.tau}")

    def passes(self, context: StepContext) -> tuple[str, ...]:
        return (ROLES[(context.step // self.tau) % len(ROLES)],)


@listed(17)
@dataclass(frozen=True)
class Composite(PassPolicy):
    """LoRA Composite: every step runs once with each LoRA alone, and the mean of what they predict is taken.

    The mean is taken for each condition before guidance; guidance is linear in it. Twice the cost of a step.
    """

    name: ClassVar[str] = "composite"

    def passes(self, context: StepContext) -> tuple[str, ...]:
        return ROLES
