"""Which of a model's last runs made a latent."""

from __future__ import annotations

import comfy.nested_tensor
import torch

from lora_conductor.fusion.records import Plan, empty_record
from lora_conductor.host.fusing.kept import KEPT_PLANS, KEPT_RUNS, KeptRuns

HEADER = {"policy": {"policy": "none"}, "loras": (), "refinement": {}}


def kept(*latents):
    runs = KeptRuns()
    for i, samples in enumerate(latents):
        header = HEADER | {"refinement": {"run": i}}
        runs.add(samples, empty_record(header), Plan(**header, sigmas=(), layers=(), calls=()))
    return runs


def number(run):
    return None if run is None else run.record.refinement["run"]


def test_values_tell_whatever_the_dtype():
    one, two = torch.randn(2, 1, 4, 8, 8)
    runs = kept(one, two)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert number(runs.made(one.to(dtype))) == 0 and number(runs.made(two.to(dtype))) == 1
    assert runs.made(one + 1) is None and runs.made(one[..., :4]) is None


def test_not_a_number_is_a_value():
    one, two = torch.randn(2, 1, 4, 8, 8)
    one[0, 0, 0, 0] = two[0, 0, 0, 1] = torch.nan
    runs = kept(one, two)
    assert number(runs.made(one.half())) == 0 and number(runs.made(two)) == 1


def test_nested_latents_as_core_packs_them():
    picture, sound = torch.randn(1, 4, 8, 8), torch.randn(1, 2, 5)
    runs = kept(torch.cat([picture.reshape(1, 1, -1), sound.reshape(1, 1, -1)], dim=2))
    assert number(runs.made(comfy.nested_tensor.NestedTensor([picture, sound]))) == 0
    assert runs.made(picture) is None


def test_the_oldest_make_room():
    latents = torch.randn(KEPT_RUNS + 3, 1, 4, 2, 2)
    runs = kept(*latents)
    assert runs.made(latents[2]) is None and number(runs.made(latents[3])) == 3
    assert sum(run.plan is not None for run in runs._runs) == KEPT_PLANS
    assert runs.made(latents[-KEPT_PLANS]).plan is not None and runs.made(latents[-KEPT_PLANS - 1]).plan is None
