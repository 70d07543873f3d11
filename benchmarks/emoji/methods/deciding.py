"""Ways of deciding that `recommended` is held against: the same schedule, emphasis and bounds, less that is known.

With ``rho`` the log ratio of how loud both LoRAs are in a layer and ``M`` that of the whole model, all of them give

    r = layers rho + (1 - layers) M + b(t),

from which the weights follow as in ``Balanced``. ``layers`` is 1 where every layer is evened out for itself, 0 where
one number is taken for all, and below 0 where whoever is louder in a layer than elsewhere gets more of it, not less.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from torch import Tensor

NEXT_TO_NOTHING = -1e-3  # of a layer's own ratio, in place of none


@cache
def by_files() -> Any:
    """`recommended`, with ``||dW||_F^2`` of the files in place of what is measured while sampling."""
    from lora_conductor.fusion.layers import Pairing
    from lora_conductor.fusion.policies import Balanced, StepContext

    @dataclass(frozen=True)
    class ByFiles(Balanced):
        name: ClassVar[str] = "by_files"

        def weights(
            self,
            log_ratio: Tensor,
            lean: Tensor | float,
            context: StepContext,
            pairing: Pairing = Pairing(),  # noqa: B008
        ) -> tuple[Tensor, Tensor]:
            told = log_ratio.new_full(log_ratio.shape, (pairing.loudness or 0.0) + pairing.turned)
            return super().weights(told, lean, context, pairing)

        def pair(
            self,
            measured: Tensor,
            lean: float,
            context: StepContext,
            pairing: Pairing = Pairing(),  # noqa: B008
        ) -> None:
            return None  # neighbours of one layer would be given the first one's loudness

    return ByFiles()


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


def loudness(model: Any) -> float:
    """Log ratio of ``||dW||_F^2``, subject over style, of the files on a model: the middle of all shared segments."""
    from lora_conductor.host.fusing import attachment_of

    pairings = attachment_of(model).spec.rules.prepared.pairings.values()
    return median(pairing.loudness for pairing in pairings if pairing.loudness is not None)


@cache
def _unbounded() -> Any:
    """The router's settings with any amount of evening out over all layers."""
    from lora_conductor.fusion.policies import setting
    from lora_conductor.fusion.routing import Refinement

    @dataclass(frozen=True)
    class Unbounded(Refinement):
        even_out: float = setting(Refinement.even_out, "As much as is tried.")

    return Unbounded
