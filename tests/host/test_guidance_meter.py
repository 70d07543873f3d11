"""What a run's report says of time and memory."""

import gc
import time

import comfy.model_management
import pytest
import torch

from lora_conductor.host.guidance_meter import MIB, Meter
from lora_conductor.host.guidance_plan import GuidanceOptions

from .test_guidance_sampling import parts, plan, run  # noqa: F401 - a fixture


def test_peaks_of_corrections_and_of_the_rest_are_told_apart(record_property):
    device, size = comfy.model_management.get_torch_device(), 96 * MIB
    # What else the process holds must hold still: earlier tests leave garbage.
    gc.collect()
    gc.disable()
    try:
        meter = Meter()
        meter.look()
        meter.begin()
        block = torch.ones(size, dtype=torch.uint8, device=device)
        meter.look()
        del block
        spent = meter.end()
        meter.stop()
    finally:
        gc.enable()
    memory = meter.memory()
    record_property("MiB seen of a block of 96", memory["over_unguided_mb"])
    assert 90 <= memory["over_unguided_mb"] <= 110
    assert spent["memory_mb"] == memory["guided_mb"]
    assert memory["unguided_mb"] == pytest.approx(memory["guided_mb"] - memory["over_unguided_mb"], abs=0.2)


def test_the_clock_stops_with_the_run():
    meter = Meter()
    meter.begin()
    time.sleep(0.02)
    assert 0.02 <= meter.end()["seconds"] < 0.5
    meter.stop()
    seconds = meter.run_seconds()
    time.sleep(0.02)
    meter.stop()
    assert meter.run_seconds() == seconds >= 0.02


@pytest.mark.parametrize("mode", ["x0", "paper"])
def test_a_run_reports_its_time_and_memory(parts, mode, record_property):  # noqa: F811
    _, scores = run(parts["model"], plan(parts, options=GuidanceOptions(mode=mode)))
    evaluations, memory = scores["evaluations"], scores["memory"]
    assert len(evaluations) > 1 and all(evaluation["seconds"] > 0 for evaluation in evaluations)
    assert scores["seconds"] == pytest.approx(sum(evaluation["seconds"] for evaluation in evaluations), abs=1e-3)
    assert scores["run_seconds"] > scores["seconds"]
    assert memory["guided_mb"] == max(evaluation["memory_mb"] for evaluation in evaluations)
    assert memory["unguided_mb"] > 0 and memory["over_unguided_mb"] >= 0 and memory["estimated_mb"] > 0
    for name in ("guided_mb", "unguided_mb", "over_unguided_mb", "estimated_mb"):
        record_property(f"{mode}: {name}", memory[name])
    record_property(f"{mode}: share of the run's time", scores["seconds"] / scores["run_seconds"])
