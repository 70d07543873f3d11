"""Gradients through the host's own networks, loaded under inference mode as the executor does."""

import comfy.clip_model
import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch

from lora_conductor.host.core import ConductorError
from lora_conductor.host.vision import gradients_enabled, load_metric_encoder, open_encoder
from lora_conductor.host.vision.vae import LatentDecoder, check_latent_shape, check_vae

from .. import tiny_encoders
from ..tiny import randomise

VAE_NAME = "emoji_taef1_vae_fp16.safetensors"


def world_vae():
    path = folder_paths.get_full_path_or_raise("vae", VAE_NAME)
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))


def kl_vae():
    config = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 128}
    config |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    model = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=config, embed_dim=4)
    randomise(model)
    return comfy.sd.VAE(sd=model.state_dict())


def wan_vae():
    model = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, num_res_blocks=2, temperal_downsample=[False, True, True])
    randomise(model)
    return comfy.sd.VAE(sd=model.state_dict())


VAES = {
    "taesd": (world_vae, comfy.latent_formats.Flux, (1, 16, 8, 8)),
    "kl": (kl_vae, comfy.latent_formats.SD15, (1, 4, 8, 8)),
    "wan": (wan_vae, comfy.latent_formats.Wan21, (1, 16, 1, 8, 8)),
}


def directional_error(function, x, eps) -> float:
    """Relative difference between the gradient of a scalar function and its central difference along it."""
    x = x.clone()
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    direction = gradient / gradient.norm() * x.numel() ** 0.5
    with torch.no_grad():
        difference = (function(x + eps * direction) - function(x - eps * direction)) / (2 * eps)
    return abs(float(difference / (gradient * direction).sum()) - 1)


@pytest.mark.parametrize("name", VAES)
def test_decoding_as_core_does_and_with_gradients(name):
    make, latent_format, shape = VAES[name]
    with torch.inference_mode():
        vae, latent_format = make(), latent_format()
        check_vae(vae, latent_format)
        comfy.model_management.load_models_gpu([vae.patcher])
        latents = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        expected = vae.decode(latent_format.process_out(latents)).reshape(-1, 64, 64, 3)
        # Small contrast keeps pixels off the clamp, whose gradient differs from its finite difference on purpose.
        vae.process_output = lambda image: image.mul_(0.02).add_(0.5)
        before = {key: value.clone() for key, value in vae.first_stage_model.state_dict().items()}
        assert next(vae.first_stage_model.parameters()).is_inference()
        decoder = LatentDecoder(vae, latent_format)
        with gradients_enabled():
            weights = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
            error = directional_error(lambda z: (decoder(z).double() * weights).mean(), latents, 1e-3)
            image = decoder(latents.clone()).detach()
        decoder.close()
        print(f"{name}: relative error of the gradient {error:.1e}")
        assert error < 0.02
        reproduced = ((image.movedim(1, -1) - 0.5) / 0.02 + 1) / 2
        torch.testing.assert_close(reproduced.clamp(0, 1), expected, atol=1e-4, rtol=0)
        for key, value in vae.first_stage_model.state_dict().items():
            assert torch.equal(value, before[key])


CORE = [
    ("clip_vision_model", {}),
    ("siglip_vision_model", {}),
    ("siglip2_vision_model", {"image_size": -1, "num_patches": 64}),
    ("dinov2", {"patch_size": 14, "image_size": 518}),  # fixed in older versions of core
]


@pytest.mark.parametrize(("kind", "changes"), CORE, ids=[kind for kind, _ in CORE])
def test_core_encoders_agree_with_core_and_have_gradients(kind, changes, tmp_path):
    with torch.inference_mode():
        source = tiny_encoders.core_clip_vision(kind, tmp_path, **changes)
        assert next(source.model.parameters()).is_inference()
        picture = tiny_encoders.smooth_picture(0, 96)
        expected = source.encode_image(picture).image_embeds.float()
        expected = expected.mean(dim=1) if expected.ndim == 3 else expected
        encoder = open_encoder(source, "clip_encoder")
        with gradients_enabled():
            images = picture.clone().movedim(-1, 1)
            embedding = encoder.embed(images)
            other = encoder.embed(tiny_encoders.smooth_picture(1, 96).clone().movedim(-1, 1)).detach()

            def similarity(x):
                return torch.cosine_similarity(encoder.embed(x).double(), other.double()).sum()

            error = directional_error(similarity, images, 2e-4)
        cosine = float(torch.cosine_similarity(embedding.detach(), expected.clone()))
        print(f"{kind}: cosine to core {cosine:.6f}, relative error of the gradient {error:.1e}")
        assert cosine > 0.9999
        assert error < 0.02


def test_own_encoder_loaded_by_a_node_has_gradients(tmp_path):
    path = tiny_encoders.write_dino(tmp_path / "dino.safetensors")
    with torch.inference_mode():
        source = load_metric_encoder(str(path))
        comfy.model_management.load_models_gpu([source.patcher])
        encoder = open_encoder(source, "dino_encoder")
        with gradients_enabled():
            images = tiny_encoders.smooth_picture(0).clone().movedim(-1, 1)
            error = directional_error(lambda x: encoder.embed(x).double().square().sum(), images, 1e-3)
        assert error < 0.02


def test_broken_encoder_files_are_named(tmp_path):
    whole = tiny_encoders.write_clip(tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConductorError, match=r"cut\.safetensors.*cannot be read"):
        load_metric_encoder(str(tmp_path / "cut.safetensors"))
    with pytest.raises(ConductorError, match=r"whole\.safetensors.*no model named"):
        load_metric_encoder(str(tiny_encoders.write_clip(tmp_path / "whole.safetensors")), "timm", "nonsense")


def test_unfit_vaes_and_latents_are_refused_before_sampling():
    with pytest.raises(ConductorError, match="vae: .*16 channels.*4"):
        check_vae(world_vae(), comfy.latent_formats.SD15())
    for shape in ((1, 16, 3, 8, 8), (1, 1, 4000)):
        with pytest.raises(ConductorError, match="latent_image"):
            check_latent_shape(shape)
