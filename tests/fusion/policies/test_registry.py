"""The list that users choose from: complete, in its frozen order."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from lora_conductor.fusion.policies import POLICIES, Policy, Solo, SSRMerge, registry
from lora_conductor.fusion.records import Replay

# Saved workflows know this order: only ever append, in the policy's own file (its place) and not here.
FIRST = [
    *("sum", "average", "paper", "kl_soft", "js", "cosine", "energy", "balanced", "k_lora", "est_lora", "np_lora"),
    *("ties", "dare", "della", "magnitude_prune", "svd", "switch", "composite", "block_mask", "random", "knots", "tsv"),
    *("craft",),
]


def test_order_never_changes() -> None:
    assert list(POLICIES)[: len(FIRST)] == FIRST
    assert sorted(registry._listed) == list(range(len(POLICIES))), "a place is left out"


def test_every_policy_that_can_be_chosen_is_listed() -> None:
    """All with a name but those that need more than their name, and a plan's, which lives with the records."""

    def named(base: type[Policy]) -> set[type[Policy]]:
        below = set().union(*(named(child) for child in base.__subclasses__()))
        return below | ({base} if base.name else set())

    ours = {policy for policy in named(Policy) if policy.__module__.startswith("lora_conductor.")} - {Replay}
    assert ours - {Solo, SSRMerge} == set(POLICIES.values())


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_name_is_enough(name: str) -> None:
    policy = POLICIES[name]()
    assert policy.name == name and policy == POLICIES[name]() and hash(policy) == hash(POLICIES[name]())
    assert json.loads(json.dumps(policy.settings()))["policy"] == name
    with pytest.raises(FrozenInstanceError):
        policy.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("place", "name"), [(0, "new"), (len(POLICIES), "sum")])
def test_a_taken_place_or_name_is_refused(place: int, name: str) -> None:
    class New(Policy):
        pass

    New.name = name
    with pytest.raises(ValueError, match="already taken"):
        registry.listed(place)(New)
    assert len(registry.choices()) == len(POLICIES)
