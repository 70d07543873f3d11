"""What fusing asks of a device, counted exactly: the limits that hold, everything a default user gets included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.speed.counting import Variants
from benchmarks.speed.models import SHAPES
from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, Energy, KLSoft, ScoredPolicy, Sum
from lora_conductor.fusion.routing import Refinement

# Launches a routed layer and model call, over LoRAs merged by core.
LIMITS = (
    {make(): 18 for make in POLICIES.values() if issubclass(make, ScoredPolicy)}
    | {RECOMMENDED: 10, Energy(): 10, KLSoft(): 14, Sum(): 0}
    | {make(): 5 for name, make in POLICIES.items() if name in ("k_lora", "est_lora", "block_mask", "random")}
)


def variants_of(depth: int, dtype: torch.dtype, folder, cfg: float = 5.0) -> Variants:
    flux = SHAPES["FLUX"]
    config = flux.config | {"depth": depth, "depth_single_blocks": 2 * depth}
    return Variants(replace(flux, config=config), dtype, folder, cfg=cfg)


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """A FLUX-shaped model of 128 layers."""
    return variants_of(8, torch.float32, tmp_path_factory.mktemp("launches"))


@pytest.mark.parametrize("policy", LIMITS, ids=lambda policy: policy.name)
def test_launches_of_a_policy(variants, policy, record_property):
    cost = variants.cost(policy)
    record_property("launches a layer and call", f"{cost.launches:.2f}")
    assert cost.launches <= LIMITS[policy], cost.kinds
    assert cost.waits == 0 and cost.reads <= 2


@pytest.mark.parametrize("policy", [policy for policy, most in LIMITS.items() if most == 18], ids=lambda p: p.name)
def test_launches_in_half_precision(policy, tmp_path, record_property):
    """What is measured has to be widened first: two more. And the map of fewer layers weighs more on each."""
    cost = variants_of(4, torch.bfloat16, tmp_path).cost(policy)
    record_property("launches a layer and call", f"{cost.launches:.2f}")
    assert cost.launches <= 20, cost.kinds


def test_frozen_and_replayed_runs_only_add(variants, record_property):
    replayed = variants.cost_of_replay(RECOMMENDED)
    for cost in (variants.cost(RECOMMENDED, Refinement(freeze_after=1)), replayed):
        record_property("launches a layer and call", f"{cost.launches:.2f}")
        # One of eight, `linear1`, adds to parts of two widths: one more. And a plan's weights are sent once a step.
        assert cost.launches <= 3 + 1 / 8 + (5 if cost is replayed else 0) / variants.layers, cost.kinds
        assert cost.waits == 0 and cost.reads <= 2


def test_without_guidance(tmp_path, record_property):
    """No pass is told apart: decisions that hold are weight patches, and a weight has a bound of its own."""
    variants = variants_of(4, torch.float32, tmp_path, cfg=1.0)
    costs = {
        "decided": (variants.cost(RECOMMENDED), 10),
        "frozen": (variants.cost(RECOMMENDED, Refinement(freeze_after=1)), 0),
        "replayed": (variants.cost_of_replay(RECOMMENDED), 3 + 1 / 8 + 5 / variants.layers),
    }
    for name, (cost, most) in costs.items():
        record_property(f"launches a layer and call, {name}", f"{cost.launches:.2f}")
        assert cost.launches <= most and cost.waits == 0 and cost.reads <= 2, cost.kinds
