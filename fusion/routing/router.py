"""The router of one run: opens its model calls, and keeps what has to outlive them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..layers import Batch
from ..policies import StepContext
from ..records import Replay, ReplayedCall
from .call import Call
from .emphasis import Emphasis, effective
from .given import Given
from .grid import Picture
from .rules import Rules
from .steadying import Steady


@dataclass(eq=False)
class Router:
    """State of one run. Its calls may run at once, in threads of their own.

    Attributes:
        rules: how segments are decided.
        cfg: scale of the classifier-free guidance, now.
        context: where in the run the calls to come are.
        fixed: once nothing is decided any more, the weights (subject, style) by segment.
        schedule: how much of the model's own schedule lies behind at a noise level, 0 to 1; None if nobody knows.
    """

    rules: Rules
    cfg: float = 1.0
    context: StepContext = StepContext(0, 1)
    fixed: Mapping[str, tuple[float, float]] | None = None
    schedule: Callable[[float], float] | None = None
    _evaluations: dict[tuple[int, str], int] = field(default_factory=dict)
    _given: tuple[Mapping[str, tuple[float, float]], Given] | None = None
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._steady = Steady(self.rules.refinement)

    @property
    def tells_passes_apart(self) -> bool:
        """Whether the negative prompt's pass gets other weights than the positive one's."""
        return self.rules.negative_share(self.cfg) != 1.0

    def guide_by(self, cfg: float) -> None:
        """The calls to come are guided at that scale."""
        if cfg != self.cfg:
            self.cfg = cfg
            self.context = replace(self.context, emphasis=effective(self.rules.asked_emphasis, cfg))

    def go_to(self, step: int, sigmas: Sequence[float]) -> None:
        """The calls to come belong to that step."""
        self.context = self.context_of(step, sigmas)

    def context_of(self, step: int, sigmas: Sequence[float]) -> StepContext:
        """Where that step lies; ``sigmas`` are the run's noise levels, one more than it has steps."""
        emphasis = effective(self.rules.asked_emphasis, self.cfg)
        schedule = None if self.schedule is None else self.schedule(sigmas[step])
        return StepContext(step, max(1, len(sigmas) - 1), sigmas[step], emphasis, schedule)

    def open_call(self, batch: Batch = Batch(), picture: Picture = Picture()) -> Call:  # noqa: B008 - frozen
        """A model call begins.

        Args:
            batch: what it computes.
            picture: what it tells of its tokens.
        """
        context = self.context
        with self._opening:
            self._steady.memory.go_to(context.step)
            evaluations = tuple(self._evaluations.get((context.step, place), 0) for place in batch.places)
            for place, evaluation in zip(batch.places, evaluations, strict=True):
                self._evaluations[context.step, place] = evaluation + 1
        emphasis = Emphasis(batch, self.rules.negative_share(self.cfg), self.rules.push(self.cfg))
        call = Call(self.rules, self._steady, emphasis, context, batch, evaluations, picture, self.fixed)
        if isinstance(self.rules.policy, Replay):
            plan = self.rules.policy.plan
            at = zip(batch.keys, evaluations, strict=True)
            call.replayed = ReplayedCall(plan, [plan.planned(context, key, n) for key, n in at])
            values = call.replayed.table(batch)
            call.given = None if values is None else Given(plan.rows, values)
        if self.fixed is not None:
            if self._given is None or self._given[0] is not self.fixed:
                self._given = self.fixed, Given.of_numbers(self.fixed)
            call.given = self._given[1].again()
        return call

    def forget(self, call: Call) -> None:
        """As if the call had not been made."""
        with self._opening:
            for place in call.batch.places:
                self._evaluations[call.context.step, place] -= 1
            self._steady.memory.forget(call.batch.places)
