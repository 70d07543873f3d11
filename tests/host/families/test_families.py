"""Every family of models the host knows: two LoRAs summed live, one alone and none, against the host's own loaders."""

import comfy.supported_models
import pytest
import torch

from .bench import IN_TURN, Bench
from .catalogue import ELSEWHERE, FAMILIES
from .grid import BREAKS, EXACT, measure, zero_is_none


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request, tmp_path_factory):
    family = FAMILIES[request.param]
    if not family.in_host:
        pytest.skip(f"this ComfyUI has no {family.model}")
    return Bench(family, tmp_path_factory.mktemp(family.model))


def test_every_family_of_the_host_is_here_or_named():
    listed = {model.__name__ for model in comfy.supported_models.models}
    known = {*FAMILIES, *ELSEWHERE}
    assert not listed - known, "the host has got new families"
    assert not set(FAMILIES) & set(ELSEWHERE)


def test_one_step_calls_every_layer(bench):
    unexplained = [key for key in bench.idle if not any(part in key for part in bench.family.idle)]
    assert not unexplained


@pytest.mark.parametrize("kind", ["lora", IN_TURN])
def test_sum_equals_stacked_loaders(bench, kind, record_property):
    cell = measure(bench, kind)
    record_property(f"{kind}, of the range", cell.error)
    assert cell.passed, cell


def test_zero_strengths_equal_no_lora(bench):
    assert zero_is_none(bench)


def test_low_precision_is_no_worse_than_cores_merge(bench, record_property):
    cell = measure(bench, "lora", torch.bfloat16)
    record_property("bfloat16 error over core's", cell.error)
    assert cell.passed, cell


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_delta_fails_its_cell(name, tmp_path):
    cell = measure(Bench(FAMILIES["Flux"], tmp_path), "lora", tamper=BREAKS[name])
    assert cell.error > 3 * EXACT and not cell.passed
