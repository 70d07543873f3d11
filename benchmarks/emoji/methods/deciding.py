"""Ways of deciding that `recommended` is held against: the same schedule, emphasis and bounds, less that is known.

With ``rho`` the log ratio of how loud both LoRAs are in a layer and ``M`` that of the whole model, all of them give

    r = layers rho + (1 - layers) M + b(t),

from which the weights follow as in ``Balanced``. ``layers`` is 1 where every layer is evened out for itself, 0 where
one number is taken for all, and below 0 where whoever is louder in a layer than elsewhere gets more of it, not less.
``rho`` may be the files', and ``M`` what is measured of the whole model all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any, ClassVar

from torch import Tensor

NEXT_TO_NOTHING = -1e-3  # of a layer's own ratio, in place of none


@cache
def by_files() -> Any:
    """The class of `recommended` with ``||dW||_F^2`` of the files in place of what is measured while sampling.

    Its setting ``heeded`` is the share of what is measured that is added to what the files say.
    """
    from lora_conductor.fusion.layers import Pairing
    from lora_conductor.fusion.policies import Balanced, StepContext

    @dataclass(frozen=True)
    class ByFiles(Balanced):
        name: ClassVar[str] = "by_files"

        heeded: float = 0.0

        def weights(
            self,
            log_ratio: Tensor,
            lean: Tensor | float,
            context: StepContext,
            pairing: Pairing = Pairing(),  # noqa: B008
        ) -> tuple[Tensor, Tensor]:
            told = (pairing.loudness or 0.0) + pairing.turned
            return super().weights(self.heeded * log_ratio + told, lean, context, pairing)

        def pair(
            self,
            measured: Tensor,
            lean: float,
            context: StepContext,
            pairing: Pairing = Pairing(),  # noqa: B008
        ) -> None:
            return None  # neighbours of one layer would be given the first one's loudness

    return ByFiles


def levelled(model: Any, subject: Path, style: Path, lean: float = 0.0) -> Any:
    """Both LoRAs on the model, evened out layer by layer as the files say, and by one measured number in the mean.

    ``r = rho - mean(rho) + M + b(t)`` with the files' ``rho``; ``M`` as of :func:`evened_once`.

    Args:
        lean: preference for the subject, as in the router's settings.
    """
    from lora_conductor.fusion.policies import Balanced
    from lora_conductor.host.fusing import fused, set_policy

    model = fused(model, subject, style, Balanced())
    # NEXT_TO_NOTHING (rho + M / NEXT_TO_NOTHING): all of M, next to nothing of what is measured in the layer.
    policy, settings = (
        by_files()(heeded=NEXT_TO_NOTHING),
        _unbounded()(even_out=-1 / NEXT_TO_NOTHING, lean=lean + loudness(model, mean)),
    )
    return set_policy(model, policy, settings)


def evened_once(
    model: Any, subject: Path, style: Path, layers: float = 0.0, lean: float = 0.0, measured: bool = False
) -> Any:
    """Both LoRAs on the model, evened out by one number for all layers.

    Args:
        layers: as in the module's docstring; what is left of each layer's own ratio is measured while sampling.
        lean: preference for the subject, as in the router's settings.
        measured: that number is the mean of what all layers measured at the step before (at the first step, and without
            this at all, the middle of the files' log ratios).
    """
    from lora_conductor.fusion.policies import Balanced
    from lora_conductor.fusion.routing import Refinement
    from lora_conductor.host.fusing import fused, set_policy

    if measured:
        own = layers or NEXT_TO_NOTHING
        # layers (rho - even_out M) is r without b(t).
        return fused(model, subject, style, Balanced(evenness=own), _unbounded()(even_out=(own - 1) / own, lean=lean))
    policy = Balanced(evenness=layers)
    model = fused(model, subject, style, policy)
    return set_policy(model, policy, Refinement(lean=lean - (1 - layers) * loudness(model)))


def loudness(model: Any, middle: Callable[[list[float]], float] = median) -> float:
    """Log ratio of ``||dW||_F^2``, subject over style, of the files on a model: the middle of all shared segments."""
    from lora_conductor.host.fusing import attachment_of

    pairings = attachment_of(model).spec.rules.prepared.pairings.values()
    return middle([pairing.loudness for pairing in pairings if pairing.loudness is not None])


@cache
def _unbounded() -> Any:
    """The router's settings with any amount of evening out over all layers."""
    from lora_conductor.fusion.policies import setting
    from lora_conductor.fusion.routing import Refinement

    @dataclass(frozen=True)
    class Unbounded(Refinement):
        even_out: float = setting(Refinement.even_out, "As much as is tried.")

    return Unbounded
