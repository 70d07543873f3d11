"""What a family of models needs to be built small from the host's own classes and sampled for one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.nested_tensor
import comfy.sample
import comfy.supported_models
import comfyui_version
import torch
from torch import Tensor

from .. import tiny

Normal = Callable[..., Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """A small model of a family.

    Attributes:
        model: class in ``comfy.supported_models``.
        unet: its configuration, on top of what the class asks for.
        latent: ``[channels, *space]`` of a latent, or one per part of a latent of several parts.
        context: ``[tokens, width]`` of the text embedding.
        conditioning: further conditioning from a generator of normal noise.
        state: what ``get_model`` wants from the checkpoint besides the diffusion model.
        buffers: names of buffers that are filled by the checkpoint.
        shrink: makes parts smaller whose size the host does not let a configuration choose.
        batch: latents in a batch; frames, in models that take those for a batch.
        since: version of the host whose class takes this configuration.
        seed: of the noise of a sample.
        idle: parts of names of layers that one step does not call, with the reason.
    """

    model: str
    unet: dict[str, Any]
    latent: Shape | tuple[Shape, ...]
    context: Shape
    conditioning: Callable[[Normal], dict[str, Any]] = lambda normal: {}
    state: Callable[[Normal], dict[str, Tensor]] = lambda normal: {}
    buffers: tuple[str, ...] = ()
    shrink: Callable[[Any, torch.dtype], None] = lambda model, dtype: None
    batch: int = 1
    since: tuple[int, ...] = ()
    seed: int = 0
    idle: dict[str, str] = field(default_factory=dict)

    @property
    def in_host(self) -> bool:
        version = tuple(int(part) for part in comfyui_version.__version__.split("."))
        return hasattr(comfy.supported_models, self.model) and version >= self.since


def noise_source(seed: int) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def build(
    family: Family, dtype: torch.dtype = torch.float32, rounded_to: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    """The family's small model on the CPU, with the same random weights in every dtype.

    Args:
        rounded_to: round the weights to this dtype first, to compare a low precision with what it rounds.
    """
    cls = getattr(comfy.supported_models, family.model)
    config = cls({**cls.unet_config, **family.unet})
    config.unet_config |= family.unet
    config.set_inference_dtype(dtype, None)
    with torch.no_grad():
        model = config.get_model(family.state(noise_source(3)), device="cpu")
    family.shrink(model, dtype)
    tiny.randomise(model)
    normal = noise_source(4)
    with torch.no_grad():
        for name in family.buffers:
            buffer = model.diffusion_model.get_buffer(name)
            buffer.copy_(normal(*buffer.shape))
        if rounded_to is not None:
            for parameter in model.parameters():
                parameter.copy_(parameter.to(rounded_to))
    return tiny.patcher(model.eval().requires_grad_(False))


def build_empty(family: Family) -> comfy.model_patcher.ModelPatcher:
    """The family's model without weights, of any size: for what only looks at names and shapes."""
    cls = getattr(comfy.supported_models, family.model)
    config = cls({**cls.unet_config, **family.unet})
    config.unet_config |= family.unet
    config.set_inference_dtype(torch.float32, None)
    with torch.device("meta"):
        model = config.get_model(family.state(noise_source(3)), device="meta")
    return tiny.patcher(model.eval().requires_grad_(False))


def sample(family: Family, model: comfy.model_patcher.ModelPatcher, turn: int = 0) -> Tensor:
    """One step at CFG 1 through the host's own sampling; a latent of several parts is joined to one row.

    Args:
        turn: for other noise and conditioning.
    """
    seed = family.seed + turn
    normal = noise_source(seed)
    shapes = family.latent if isinstance(family.latent[0], tuple) else (family.latent,)
    noises = [normal(family.batch, *shape) for shape in shapes]
    noise = noises[0] if len(noises) == 1 else comfy.nested_tensor.NestedTensor(noises)
    positive = [[normal(1, *family.context), family.conditioning(normal)]]
    # HiDream-O1 keeps keys and values of a prompt from run to run, whatever has become of its weights.
    getattr(model.model.diffusion_model, "clear_kv_cache", lambda: None)()
    with torch.inference_mode():
        samples = comfy.sample.sample(
            model, noise, 1, 1.0, "lcm", "simple", positive, positive, noise * 0, disable_pbar=True, seed=seed
        )
    return samples if isinstance(samples, Tensor) else torch.cat([part.flatten(1) for part in samples.unbind()], 1)
