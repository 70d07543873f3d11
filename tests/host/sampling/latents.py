"""Every kind of latent, sampled for several steps with CFG."""

from __future__ import annotations

import comfy.nested_tensor
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..families.family import noise_source
from .ways import SEED, Put, Way, World

SECTION = "Latents"
KINDS = {
    "image": "SD15",
    "image, flow": "Flux",
    "image, 16 channels, a DiT": "SD3",
    "video": "WAN21_T2V",
    "video, frames as a batch": "SVD_img2vid",
    "audio": "StableAudio",
    "audio, two dimensions": "ACEStep",
    "video and audio, nested": "LTXAV",
    "3D": "Hunyuan3Dv2",
}


def run(world: World, model: ModelPatcher, put: Put) -> Tensor:
    family, normal = world.family, noise_source(SEED)
    shapes = family.latent if isinstance(family.latent[0], tuple) else (family.latent,)
    noises = [normal(family.batch, *shape) for shape in shapes]
    noise = noises[0] if len(noises) == 1 else comfy.nested_tensor.NestedTensor(noises)
    samples = world.sample(put(model), noise=noise, latent_image=noise * 0, steps=3)
    return samples if isinstance(samples, Tensor) else torch.cat([part.flatten(1) for part in samples.unbind()], 1)


WAYS = [Way(SECTION, kind, "3 steps, CFG 2", run, family) for kind, family in KINDS.items()]
