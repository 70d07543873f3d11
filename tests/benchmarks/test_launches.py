"""What fusing asks of a device, counted exactly: the limits that hold, everything a default user gets included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.speed import report, scaling, trace
from benchmarks.speed.counting import Variants
from benchmarks.speed.models import SHAPES
from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, Energy, KLSoft, ScoredPolicy, Sum
from lora_conductor.fusion.routing import Refinement

# Launches a routed layer and model call, over LoRAs merged by core.
LIMITS = (
    {make(): 18 for make in POLICIES.values() if issubclass(make, ScoredPolicy)}
    | {RECOMMENDED: 10, Energy(): 10, KLSoft(): 14, Sum(): 0}
    | {make(): 5 for name, make in POLICIES.items() if name in ("k_lora", "est_lora", "block_mask", "random", "craft")}
)


def variants_of(depth: int, dtype: torch.dtype, folder, **more) -> Variants:
    flux = SHAPES["FLUX"]
    config = flux.config | {"depth": depth, "depth_single_blocks": 2 * depth}
    return Variants(replace(flux, config=config), dtype, folder, **more)


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


def test_launches_do_not_grow_with_rank_batch_or_loras(tmp_path, record_property):
    """Bytes do, beyond the floor: both LoRAs added with nothing decided."""
    plain, *grown = (
        variants_of(2, torch.float32, tmp_path, **more)
        for more in (
            {},
            {"subject": (64,), "style": (64,)},
            {"batch": 3},
            {"subject": (16, 16), "style": (16, 16)},
            {"subject": (16, 16)},
            {"style": (40,)},
        )
    )
    cost, floor = plain.cost(RECOMMENDED), plain.floor()
    record_property("launches a layer and call, added as they are", f"{floor.launches:.2f}")
    assert floor.launches <= 3 and floor.launches < cost.launches and floor.bytes < cost.bytes
    for variants in grown:
        more = variants.cost(RECOMMENDED)
        assert more.launches <= cost.launches + 0.25 and more.bytes > cost.bytes


def test_ranks_far_apart_are_measured_each_for_itself(tmp_path, record_property):
    """Zeros that make them alike would be as large as the files. Where they are near, they cost as much as alike."""
    plain, near, apart = (
        variants_of(2, torch.float32, tmp_path, **more) for more in ({}, {"style": (40,)}, {"style": (64,)})
    )
    for policy in (RECOMMENDED, KLSoft(), POLICIES["paper"]()):
        alike, cost = plain.cost(policy), apart.cost(policy)
        record_property(f"launches a layer and call, {policy.name}", f"{cost.launches:.2f}")
        assert near.cost(policy).launches <= alike.launches + 0.25
        assert cost.launches <= alike.launches + 4.1


def test_pages_of_scaling_and_of_one_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "AXES", (scaling.Axis("rank of both", {"4": {"subject": (4,), "style": (4,)}}),))
    monkeypatch.setattr(scaling, "MODEL", "FLUX")
    monkeypatch.setitem(
        SHAPES, "FLUX", replace(SHAPES["FLUX"], config=SHAPES["FLUX"].config | {"depth": 1, "depth_single_blocks": 1})
    )
    lines = list(scaling.table(tmp_path / "plot.png"))
    row = next(line for line in lines if line.startswith("| 4 |"))
    assert len(row.split("|")) == len(scaling.COUNTED) + 4 and (tmp_path / "plot.png").stat().st_size > 1000
    monkeypatch.setattr(trace, "MODEL", "FLUX")
    *kinds, total = [line.split("|")[1:4] for line in list(trace.table())[2:]]
    assert sum(float(row[1]) for row in kinds) == pytest.approx(trace.TOTAL_BEFORE, abs=0.3)
    assert 5 < float(total[2]) < float(total[1])


def test_a_page_keeps_the_sections_that_are_not_made_anew(tmp_path):
    page, made = tmp_path / "page.md", []

    def maker(name):
        def make():
            made.append(name)
            yield from (f"{name} {len(made)}", "", "| a |")

        return make

    makers = {name: maker(name) for name in ("one", "two", "three")}
    report.write(makers, ["three", "one"], page)
    assert made == ["one", "three"] and "## two" not in page.read_text()
    report.write(makers, ["two"], page)
    assert page.read_text().split("\n## ")[1:] == [
        "one\n\none 1\n\n| a |\n",
        "two\n\ntwo 3\n\n| a |\n",
        "three\n\nthree 2\n\n| a |\n",
    ]
