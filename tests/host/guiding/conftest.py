"""What guided runs need: a model, a VAE, encoders and pictures in this process, and encoder files for the server."""

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch

from lora_conductor.host.vision import load_metric_encoder

from .. import tiny_encoders
from ..tiny import world_flux
from .guided import CLIP_FILE, DINO_FILE, TEXT_FILE


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    with torch.inference_mode():
        path = folder_paths.get_full_path_or_raise("vae", "emoji_taef1_vae_fp16.safetensors")
        return {
            "model": world_flux(),
            "vae": comfy.sd.VAE(sd=comfy.utils.load_torch_file(path)),
            "clip_encoder": load_metric_encoder(str(tiny_encoders.write_clip(folder / "clip.safetensors"))),
            "dino_encoder": load_metric_encoder(str(tiny_encoders.write_dino(folder / "dino.safetensors"))),
            "subject_image": tiny_encoders.smooth_picture(1),
            "style_image": tiny_encoders.smooth_picture(2),
        }


@pytest.fixture(scope="module", name="comfy")
def server_with_encoders(server):
    folder = server.base_dir / "models" / "clip_vision"
    tiny_encoders.write_clip(folder / CLIP_FILE)
    tiny_encoders.write_dino(folder / DINO_FILE)
    tiny_encoders.write_clip(folder / TEXT_FILE, text=True)
    yield server
    for name in (CLIP_FILE, DINO_FILE, TEXT_FILE):
        (folder / name).unlink()
