"""What fusing takes besides launches: memory, bookkeeping, loading."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.speed import loading
from benchmarks.speed.bookkeeping import bookkeeping
from benchmarks.speed.memory import measured
from benchmarks.speed.models import SHAPES, lora_of, model_of, sample
from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Paper
from lora_conductor.host.fusing import attachment_of, fused, set_policy


@pytest.fixture(scope="module")
def model_and_files(tmp_path_factory):
    """Two levels of an SD1.5-shaped UNet that is wide against its LoRAs, as real ones are."""
    depth = {"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1}
    size = {"model_channels": 192, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "num_heads": 6}
    shape = replace(SHAPES["SD1.5"], config=SHAPES["SD1.5"].config | depth | size, latent=32)
    model = model_of(shape, torch.float32)
    folder = tmp_path_factory.mktemp("costs")
    return shape, model, [lora_of(shape, model, folder / f"{i}.safetensors", 16, i) for i in (1, 2)]


def test_memory_is_that_of_the_factors_and_little_more(model_and_files, record_property):
    shape, model, files = model_and_files

    def of(model):
        return measured(model, lambda model: sample(shape, model, 1, 5.0))

    merged, loaded = of(model), fused(model, *files)
    stored = sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    for policy in (RECOMMENDED, KLSoft(), Paper()):
        its = of(set_policy(loaded, policy))
        record_property(f"peak over merged, {policy.name}", f"{its.peak / merged.peak:.3f}")
        assert its.factors == pytest.approx(stored, rel=0.01), "core counts them once, whatever size the weights have"
        assert its.peak <= 1.03 * merged.peak
    layers = attachment_of(loaded).spec.layers
    assert {p.dtype for layer in layers for p in layer.parameters()} == {model.model.get_dtype_inference()}


def test_map_record_and_plan_of_a_large_run_take_no_time(record_property):
    took = min((bookkeeping() for _ in range(3)), key=lambda its: its.total)
    record_property("processor seconds", f"{took.total:.3f}")
    assert took.total < 0.15


def test_loading_is_timed_against_core():
    took = loading.loading(4, SHAPES["SD1.5"])
    assert min(took.first, took.again, took.core) > 0 and took.size > 0
