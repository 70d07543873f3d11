"""Preview decoders of every kind of latent for which core has one, with random weights."""

import comfy.latent_formats
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import pytest
import torch
from comfy.taesd.taehv import TAEHV
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file

from lora_conductor.host.core import ConductorError
from lora_conductor.host.vision import DecoderLadder, gradients_enabled
from lora_conductor.host.vision.previews import preview_decoder

from ..tiny import randomise
from .test_gradients import directional_error

# FLUX.2's came to core with a later version.
FORMATS = [
    name
    for name in ("SD15", "SDXL", "SD3", "Flux", "Flux2", "Wan21", "Wan22", "HunyuanVideo", "HunyuanVideo15")
    if getattr(getattr(comfy.latent_formats, name)(), "taesd_decoder_name", None)
]


def is_video(latent_format) -> bool:
    return latent_format.taesd_decoder_name in latent_preview.VIDEO_TAES


@pytest.fixture
def decoder_file(request, models_dir):
    """Core's preview decoder for a latent format, where the host finds it."""
    latent_format = getattr(comfy.latent_formats, request.param)()
    with torch.inference_mode(False):
        if is_video(latent_format):
            network = TAEHV(latent_channels=latent_format.latent_channels)
        else:
            network = TAESD(latent_channels=latent_format.latent_channels).taesd_decoder
        randomise(network)
        # Core tells HunyuanVideo's files from Wan's by their precision.
        dtype = torch.float16 if request.param == "HunyuanVideo" else torch.float32
        weights = {key: value.to(dtype).contiguous() for key, value in network.state_dict().items()}
    path = models_dir / "vae_approx" / f"{latent_format.taesd_decoder_name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(weights, path)
    folder_paths.filename_list_cache.clear()
    yield path, latent_format
    path.unlink()
    folder_paths.filename_list_cache.clear()


@pytest.mark.parametrize("decoder_file", FORMATS, indirect=True)
def test_decodes_as_core_does_and_with_gradients(decoder_file, record_property):
    path, latent_format = decoder_file
    video = is_video(latent_format)
    shape = (1, latent_format.latent_channels, *([1] if video else []), 4, 4)
    latents = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if video:
            vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
            expected = vae.decode(latent_format.process_out(latents))[0, 0].movedim(-1, 0)
        else:
            core = TAESD(None, str(path), latent_channels=latent_format.latent_channels)
            expected = (core.decode(latents)[0] / 2 + 0.5).clamp(0, 1)
        # Made in the executor's mode, as in a run.
        decoder = DecoderLadder("preview", None, latent_format).current
    assert decoder.name == "preview decoder" and decoder.memory(shape) > 0
    with gradients_enabled():
        image = decoder(latents)
        assert image.shape == (1, *expected.shape)
        torch.testing.assert_close(image[0].detach(), expected.clone().clamp(0, 1), atol=1e-4, rtol=0)
        # Pixels off the clamp, whose gradient differs from its finite difference on purpose.
        inside = ((image > 0.02) & (image < 0.98)).detach()
        assert inside.float().mean() > 0.1
        error = directional_error(lambda z: (decoder(z).double() * inside).mean(), latents, 2e-4)
    decoder.close()
    record_property(f"{type(latent_format).__name__}: relative error of the gradient", error)
    assert error < 0.02


@pytest.mark.parametrize("decoder_file", ["Wan21"], indirect=True)
def test_a_file_for_other_latents_is_named(decoder_file):
    path, _ = decoder_file
    with pytest.raises(ConductorError, match=r"lighttaew2_1\.safetensors.*not a TAESD decoder.*16 channels.*makes 48"):
        preview_decoder(str(path), comfy.latent_formats.Wan22())
