"""What a run's report says of time and memory."""

import json
import subprocess
import sys
import time

import pytest

from lora_conductor.host.guiding import GuidanceOptions
from lora_conductor.host.guiding.telemetry import Meter

from .guided import plan, run

BLOCK = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torchvision_shim
torchvision_shim.install()
from comfy.cli_args import args
args.cpu = json.loads(sys.argv[2])
import comfy.model_management, torch
from lora_conductor.host.guiding.telemetry import MIB, Meter
device = comfy.model_management.get_torch_device()
meter = Meter()
meter.look()
meter.begin()
block = torch.ones(96 * MIB, dtype=torch.uint8, device=device)
meter.look()
del block
spent = meter.end()
meter.stop()
print(json.dumps([spent, meter.memory()]))
"""


def test_peaks_of_corrections_and_of_the_rest_are_told_apart(record_property):
    """In a process of its own: one that has freed much memory takes the block from that, and does not grow."""
    from comfy.cli_args import args

    command = [sys.executable, "-c", BLOCK, json.dumps(sys.path), json.dumps(args.cpu)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spent, memory = json.loads(done.stdout.splitlines()[-1])
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
def test_a_run_reports_its_time_and_memory(parts, mode, record_property):
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
