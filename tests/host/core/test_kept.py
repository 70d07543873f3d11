"""Which of a model's last runs made a latent."""

from __future__ import annotations

import comfy.nested_tensor
import torch

from lora_conductor.host.core.kept import KEPT_RUNS, Kept


def kept(*latents):
    runs = Kept()
    for number, samples in enumerate(latents):
        runs.add(samples, number)
    return runs


def test_values_tell_whatever_the_dtype():
    one, two = torch.randn(2, 1, 4, 8, 8)
    runs = kept(one, two)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert runs.find(one.to(dtype)) == 0 and runs.find(two.to(dtype)) == 1
    assert runs.find(one + 1) is None and runs.find(one[..., :4]) is None


def test_not_a_number_is_a_value():
    one, two = torch.randn(2, 1, 4, 8, 8)
    one[0, 0, 0, 0] = two[0, 0, 0, 1] = torch.nan
    runs = kept(one, two)
    assert runs.find(one.half()) == 0 and runs.find(two) == 1


def test_nested_latents_as_core_packs_them():
    picture, sound = torch.randn(1, 4, 8, 8), torch.randn(1, 2, 5)
    runs = kept(torch.cat([picture.reshape(1, 1, -1), sound.reshape(1, 1, -1)], dim=2))
    assert runs.find(comfy.nested_tensor.NestedTensor([picture, sound])) == 0
    assert runs.find(picture) is None


def test_the_oldest_make_room():
    latents = torch.randn(KEPT_RUNS + 3, 1, 4, 2, 2)
    runs = kept(*latents)
    assert runs.find(latents[2]) is None and runs.find(latents[3]) == 3
