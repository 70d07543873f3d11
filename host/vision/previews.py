"""Cheap decoders for guidance: the small autoencoders of models/vae_approx, and the latent format's own RGB factors."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.taesd.taesd import TAESD

from ...guidance.preprocess import clamp_with_gradient
from ..core import ConductorError
from .autograd import DifferentiableCall
from .vae import Decoder, LatentDecoder

# Bytes for one latent pixel, fp32: autograd keeps 141,000 of a TAESD decoder (measured in
# tests/host/guiding/test_memory.py), and the backward pass works in some more.
TAESD_BYTES = 200_000
VIDEO_KEY = "decoder.22.bias"  # by which core tells files of the TAEHV kind
NAME = "preview decoder"


def preview_file(latent_format: Any) -> str | None:
    """Path of the preview decoder file for a model's latent format, None if there is none in models/vae_approx."""
    name = getattr(latent_format, "taesd_decoder_name", None)
    if name is None:
        return None
    files = [file for file in folder_paths.get_filename_list("vae_approx") if file.startswith(f"{name}.")]
    return folder_paths.get_full_path("vae_approx", files[0]) if files else None


def preview_decoder(path: str, latent_format: Any) -> Decoder:
    """The decoder of a `preview_file`. Raises ConductorError naming the file if it is none for this model."""
    # Weights made under inference mode could not be differentiated through.
    with torch.inference_mode(False), torch.no_grad():
        try:
            weights = comfy.utils.load_torch_file(path, safe_load=True)
            if VIDEO_KEY not in weights:
                return PreviewDecoder(weights, latent_format)
            return _video_decoder(weights, latent_format)
        except Exception as error:  # whatever the file's reader or the key check raises
            raise ConductorError(
                f"decoder: {path.rpartition('/')[2]} in models/vae_approx is not a TAESD decoder of this model: "
                f"{error}. Replace the file, or set decoder to vae."
            ) from error


def _video_decoder(weights: dict[str, Any], latent_format: Any) -> LatentDecoder:
    """A TAEHV decoder, for models whose pictures are single frames of Wan's or HunyuanVideo's, such as Qwen-Image."""
    vae = comfy.sd.VAE(sd=weights)
    if vae.latent_channels != latent_format.latent_channels:
        raise ValueError(f"it decodes {vae.latent_channels} channels, the model makes {latent_format.latent_channels}")
    model = vae.first_stage_model
    model.show_progress_bar = False
    # The other way of going through the frames cuts the gradient from each to the one before.
    model.parallel = True
    decoder = LatentDecoder(vae, latent_format)
    decoder.name = NAME
    return decoder


class PreviewDecoder:
    """A TAESD decoder: a tenth of the VAE's cost, a little blurred. Satisfies `Decoder`."""

    name = NAME

    def __init__(self, weights: dict[str, Any], latent_format: Any) -> None:
        model = TAESD(latent_channels=latent_format.latent_channels)
        model.taesd_decoder.load_state_dict(weights)
        model.eval().requires_grad_(False)
        self._device = comfy.model_management.get_torch_device()
        self.patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=self._device, offload_device=comfy.model_management.vae_offload_device()
        )
        decoder = model.taesd_decoder
        # A latent pixel of FLUX.2 holds two by two of the others'.
        self._pixels = 4 if latent_format.latent_channels == 128 else 1
        self._decode = DifferentiableCall(model, lambda latents: decoder(latents), self._device, torch.float32)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """See Decoder. TAESD reads the model's own space."""
        flat = latents[:, :, 0] if latents.ndim == 5 else latents
        return clamp_with_gradient(self._decode(flat.to(device=self._device, dtype=torch.float32)))

    def memory(self, shape: tuple[int, ...]) -> float:
        """See Decoder."""
        return TAESD_BYTES * float(shape[-2] * shape[-1]) * self._pixels

    def close(self) -> None:
        """Free the copies of weights."""
        self._decode.close()


class RgbDecoder:
    """A linear map from latent channels to RGB at the latent's resolution: no network, colours and coarse shapes only.

    Satisfies `Decoder`.
    """

    name = "latent to RGB factors"
    patcher = None

    def __init__(self, latent_format: Any) -> None:
        with torch.inference_mode(False):
            self._factors = torch.tensor(latent_format.latent_rgb_factors, dtype=torch.float32)
            bias = getattr(latent_format, "latent_rgb_factors_bias", None)
            self._bias = torch.zeros(3) if bias is None else torch.tensor(bias, dtype=torch.float32)
        self._reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """See Decoder; images are as large as the latents."""
        if self._reshape is not None:
            latents = self._reshape(latents)
        flat = (latents[:, :, 0] if latents.ndim == 5 else latents).float()
        rgb = torch.einsum("bchw,cr->brhw", flat, self._factors.to(flat)) + self._bias.to(flat).view(1, 3, 1, 1)
        return clamp_with_gradient((rgb + 1.0) / 2.0)

    def memory(self, shape: tuple[int, ...]) -> float:
        """See Decoder."""
        return 64.0 * shape[-2] * shape[-1]

    def close(self) -> None:
        """Nothing to free."""


def has_rgb_factors(latent_format: Any) -> bool:
    """Whether there are factors for this model's latents."""
    return getattr(latent_format, "latent_rgb_factors", None) is not None
