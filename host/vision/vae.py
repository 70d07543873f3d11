"""Predicted clean latents to images, with gradients, through a ComfyUI VAE."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ...guidance.preprocess import clamp_with_gradient
from ..core import ConductorError
from .autograd import DifferentiableCall, normal_copy

# What autograd keeps of a decoder and the backward pass works in, in units of core's estimate for the forward pass. Of
# the KL decoder it keeps 2.6, with checkpoints 0.4 and then one block (measured in
# tests/host/guiding/test_memory.py).
GRADIENT_MEMORY = 3.6
CHECKPOINTED_MEMORY = 1.4


class Decoder(Protocol):
    """Latents in the model's space to images, differentiably; made for one sampling run."""

    name: str

    @property
    def patcher(self) -> Any:
        """What core's memory management loads, None if there is nothing to load."""
        ...

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """latents: [B, C, H, W] or [B, C, 1, H, W] in the model's space -> images [B, 3, h, w], fp32 RGB in [0, 1]."""
        ...

    def memory(self, shape: tuple[int, ...]) -> float:
        """Bytes that decoding a latent of this shape and going back takes, roughly."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def check_vae(vae: Any, latent_format: Any) -> None:
    """Raise ConductorError unless `vae` decodes this model's latents to RGB images."""
    if getattr(vae, "output_channels", 3) != 3 or getattr(vae, "latent_dim", 2) not in (2, 3):
        raise ConductorError("vae: this VAE does not decode to RGB images. Connect the image VAE of the model.")
    have, need = getattr(vae, "latent_channels", None), latent_format.latent_channels
    if have is not None and have != need:
        raise ConductorError(
            f"vae: this VAE decodes latents with {have} channels, but the model makes {need}. Connect the VAE that "
            "belongs to the model."
        )


def check_latent_shape(shape: tuple[int, ...]) -> None:
    """Raise ConductorError unless latents of this shape, [B, C, H, W] or [B, C, 1, H, W], can be guided."""
    if len(shape) not in (4, 5) or (len(shape) == 5 and shape[2] != 1):
        raise ConductorError(
            f"latent_image: metric guidance works on single images, but the latent has shape {list(shape)}. Use an "
            "image latent, or set guidance_strength to 0."
        )


class LatentDecoder:
    """Decodes latents in the model's space to images, differentiably, with the VAE itself.

    vae: a ComfyUI VAE. latent_format: the model's, which takes latents to the VAE's space. scale: latents are shrunk
    by it first, which costs detail and saves memory and time by its square. checkpoint_blocks: see DifferentiableCall.
    """

    def __init__(self, vae: Any, latent_format: Any, scale: float = 1.0, checkpoint_blocks: bool = False) -> None:
        self._vae = vae
        self._latent_format = latent_format
        self._scale = scale
        self._affine: Any = None
        # fp16 only where core itself trusts this VAE with it.
        self._dtype = vae.vae_dtype
        if self._dtype == torch.float16 and torch.float16 not in vae.working_dtypes:
            self._dtype = torch.float32
        model = vae.first_stage_model
        unused = ("encoder.", "taesd_encoder.", "quant_conv.")
        self._decode = DifferentiableCall(model, model.decode, vae.device, self._dtype, unused)
        self._decode.checkpoint_blocks = checkpoint_blocks
        self.name = "vae"
        if checkpoint_blocks:
            self.name = "vae, checkpointed"
        if scale != 1.0:
            self.name = f"vae, at {scale:g} of the resolution"

    @property
    def patcher(self) -> Any:
        """See Decoder."""
        return self._vae.patcher

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """See Decoder; the size factor is the VAE's. Call inside `gradients_enabled`."""
        return self.decode_samples(self._to_vae_space(latents))

    def decode_samples(self, samples: torch.Tensor) -> torch.Tensor:
        """The same for latents in the VAE's space, as they stand in a LATENT."""
        if self._scale != 1.0:
            samples = shrunk(samples, self._scale)
        if self._vae.latent_dim == 2 and samples.ndim == 5:
            samples = samples[:, :, 0]
        elif self._vae.latent_dim == 3 and samples.ndim == 4:
            samples = samples.unsqueeze(2)
        images = self._decode(samples.to(device=self._vae.device, dtype=self._dtype)).float()
        if images.ndim == 5:
            images = images[:, :, 0]
        slope, offset = self._output_scale()
        return clamp_with_gradient(images * slope + offset)

    def memory(self, shape: tuple[int, ...]) -> float:
        """See Decoder; from core's own estimate of decoding, for one sample."""
        size = [max(1, round(side * self._scale)) for side in shape[-2:]]
        one = (1, shape[1], *([1] if self._vae.latent_dim == 3 else []), *size)
        factor = CHECKPOINTED_MEMORY if self._decode.checkpoint_blocks else GRADIENT_MEMORY
        return factor * float(self._vae.memory_used_decode(one, self._dtype))

    def close(self) -> None:
        """Free the copies of weights."""
        self._decode.close()

    def _to_vae_space(self, latents: torch.Tensor) -> torch.Tensor:
        if self._affine is None:
            self._affine = _usable_format(self._latent_format)
        return self._affine.process_out(latents)

    def _output_scale(self) -> tuple[float, float]:
        """process_output as slope and offset: core's clamps in place, which has no gradient outside [0, 1]."""
        low, high = self._vae.process_output(torch.tensor([0.0, 0.25])).tolist()
        return (high - low) / 0.25, low


def shrunk(latents: torch.Tensor, scale: float) -> torch.Tensor:
    """[B, C, (1,) H, W] resized by `scale`, smoothly, with gradients."""
    flat = latents.flatten(1, -3)
    size = [max(1, round(side * scale)) for side in latents.shape[-2:]]
    small = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
    return small.view(*latents.shape[:-2], *size)


def _usable_format(latent_format: Any) -> Any:
    # Formats that scale by channel hold tensors, made under inference mode like everything else.
    usable = copy.copy(latent_format)
    for name, value in vars(usable).items():
        if isinstance(value, torch.Tensor):
            setattr(usable, name, normal_copy(value))
    return usable
