"""Every sampler of core's, in every form of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .ways import SEED, STEPS, Put, Way, World

SECTION = "Samplers"
DIFFERS = {
    "dpm_adaptive": "sets its steps by an estimate of its error, in which rounding grows: ComfyUI's own two loaders in "
    "the other order differ by 1e-4 as well"
}
Form = Callable[[World, ModelPatcher, str], Tensor]


def one_run(world: World, model: ModelPatcher, sampler: str) -> Tensor:
    seen: list[int] = []
    picture = world.sample(model, sampler_name=sampler, callback=lambda step, *_: seen.append(step))
    assert seen
    return picture


def no_callback(world: World, model: ModelPatcher, sampler: str) -> Tensor:
    return world.sample(model, sampler_name=sampler, callback=None)


def in_parts(bounds: list[int]) -> Form:
    """KSampler (Advanced), chained."""

    def run(world: World, model: ModelPatcher, sampler: str) -> Tensor:
        latent = world.latent()
        for first, last in zip(bounds, bounds[1:], strict=False):
            noise = torch.zeros_like(latent) if first else None
            how: dict[str, Any] = {"start_step": first, "last_step": last, "force_full_denoise": last == STEPS}
            latent = world.sample(model, sampler_name=sampler, latent_image=latent, noise=noise, **how)
        return latent

    return run


def drawn(world: World, batch: int = 1) -> Tensor:
    """A latent that is a picture already."""
    latent = world.latent(batch)
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(9))


def img2img(world: World, model: ModelPatcher, sampler: str) -> Tensor:
    return world.sample(model, sampler_name=sampler, latent_image=drawn(world), denoise=0.6)


def inpainting(world: World, model: ModelPatcher, sampler: str) -> Tensor:
    latent = drawn(world)
    mask = torch.zeros(1, 1, *latent.shape[-2:])
    mask[..., latent.shape[-1] // 2 :] = 1.0
    return world.sample(model, sampler_name=sampler, latent_image=latent, noise_mask=mask)


def batch_index(world: World, model: ModelPatcher, sampler: str) -> Tensor:
    latent = world.latent(2)
    noise = comfy.sample.prepare_noise(latent, SEED, [2, 0])
    return world.sample(model, sampler_name=sampler, latent_image=latent, noise=noise)


def latent_list(world: World, model: ModelPatcher, sampler: str) -> Tensor:
    """A node gets a list: it runs once for each latent, of other sizes and batches, with the same model."""
    sizes = [(1, 8), (2, 16), (1, 8)]
    pictures = [world.sample(model, sampler_name=sampler, latent_image=world.latent(*s)) for s in sizes]
    return torch.cat([picture.flatten() for picture in pictures])


FORMS: dict[str, Form] = {
    "one run": one_run,
    "two stages": in_parts([0, 2, STEPS]),
    "a step a call": in_parts(list(range(STEPS + 1))),
    "no callback": no_callback,
    "img2img": img2img,
    "inpainting": inpainting,
    "batch_index": batch_index,
    "latent list": latent_list,
}


def _way(sampler: str, form: str, family: str = "SD15", column: str = "") -> Way:
    def run(world: World, model: ModelPatcher, put: Put) -> Tensor:
        return FORMS[form](world, put(model), sampler)

    return Way(SECTION, sampler, column or form, run, family, DIFFERS.get(sampler, ""))


WAYS = [
    way
    for sampler in comfy.samplers.SAMPLER_NAMES
    for way in (*(_way(sampler, form) for form in FORMS), _way(sampler, "one run", "Flux", "flow model"))
]
