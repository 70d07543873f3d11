"""Other readings of the paper's KL score, for the ablations only: which way round, over what, decided for whom.

Each is called as a score of ``lora_conductor.fusion.policies.scores`` is: base ``[batch, tokens, channels]``, delta
with one more dimension in front, for the LoRAs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def reverse_kl(base: Tensor, delta: Tensor) -> Tensor:
    """``KL(softmax(F) || softmax(F + h))`` over channels, averaged over tokens: the base distribution first."""
    p, h = torch.softmax(base.double(), dim=-1), delta.double()
    centred = h - (p * h).sum(-1, keepdim=True)
    return torch.log((p * centred.exp()).sum(-1)).mean(-1).float()


def kl_over_tokens(base: Tensor, delta: Tensor) -> Tensor:
    """``KL(softmax(F + h) || softmax(F))`` over tokens, averaged over channels."""
    from lora_conductor.fusion.policies.scores import kl_softmax

    return kl_softmax(base.transpose(-1, -2), delta.transpose(-1, -2))


def kl_of_batch(base: Tensor, delta: Tensor) -> Tensor:
    """The paper's KL, averaged over all pictures and prompts of a batch: they share each decision."""
    from lora_conductor.fusion.policies.scores import kl_softmax

    each = kl_softmax(base, delta)
    return each.mean(-1, keepdim=True).expand_as(each)


TRIALS = {score.__name__: score for score in (reverse_kl, kl_over_tokens, kl_of_batch)}


def register() -> None:
    """Make them known to the pack in this process, by their names."""
    from lora_conductor.fusion.policies import SCORES

    SCORES.update(TRIALS)


def trial(settings: dict[str, Any]) -> Any:
    """The router's settings with a score of these, which it does not offer to users."""
    from lora_conductor.fusion.policies import setting
    from lora_conductor.fusion.routing import Refinement

    @dataclass(frozen=True)
    class Trial(Refinement):
        score: str = setting(Refinement.score, "One that is tried.", options=tuple(TRIALS))

    return Trial(**settings)
