"""Which settings act under which policy: the page hides the others, so the list has to be what pictures say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_conductor.fusion.routing import NAMED, SETTINGS, Refinement, acting, with_settings
from lora_conductor.host.fusing import load_loras, set_policy
from lora_conductor.host.loras import LoraChoice

from ..tiny import sample, world_flux
from ..workflows import STYLE, SUBJECT

CHANGED: dict[str, Any] = {
    "temperature": 3.0,
    "balance": 2.0,
    "score": "energy",
    "even_out": 1.0,
    "floor": 0.7,
    "smoothing": 0.9,
    "hysteresis": 5.0,
    "time_lead": 3.0,
    "layer_prior": 3.0,
    "blur": 4.0,
    "start": 0.5,
    "end": 0.5,
    "cap": 0.3,
    "granularity": "head",
    "follow_cond": True,
    "freeze_after": 1,
    "emphasis": 1.7,
}
UNSEEN = {"group_attention"}  # this model has queries, keys and values in one layer
BESIDE = {"blur": {"granularity": "token"}}


@pytest.fixture(scope="module")
def loaded() -> Any:
    choices = [LoraChoice(SUBJECT, "subject", 1.0, 1.0), LoraChoice(STYLE, "style", 1.0, 1.0)]
    return load_loras(world_flux(), None, choices)[0]


def picture(loaded: Any, policy: str, **settings: Any) -> torch.Tensor:
    return sample(set_policy(loaded, *with_settings(NAMED[policy], Refinement(), settings)), steps=4, cfg=6.0)


@pytest.mark.parametrize(
    "policy", ["recommended", "paper", "kl_soft", "block_mask", "k_lora", "switch", "sum", "average"]
)
def test_those_that_are_listed_change_the_picture_and_no_others(loaded: Any, policy: str) -> None:
    assert set(CHANGED) | UNSEEN == {setting.name for setting in SETTINGS}
    plain = picture(loaded, policy)
    found = set()
    changed = CHANGED | ({"score": "js"} if policy == "recommended" else {})  # which measures energy by itself
    for name, value in changed.items():
        beside = BESIDE.get(name, {})
        before = picture(loaded, policy, **beside) if beside else plain
        if not torch.equal(picture(loaded, policy, **beside, **{name: value}), before):
            found.add(name)
    assert found == set(acting(NAMED[policy])) - UNSEEN
