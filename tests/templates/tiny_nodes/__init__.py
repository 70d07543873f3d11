"""A node pack for tests: small random models in place of the files that templates name, on the host's own classes.

Of the files themselves only the small world's fit core's loader nodes: what core makes of a checkpoint depends on its
size. So these nodes stand where loader nodes stood, and give out what those would have. A file without a single byte in
a models folder is one of these, too, when core's own loader node is asked for it: for tests that begin in the page.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.taesd.taesd
import folder_paths
import nodes
import torch

TESTS = Path(__file__).resolve().parents[2]
NAME = "lora_conductor_tests"  # not `tests`: ComfyUI has a folder of that name


def _tests(module: str) -> Any:
    """A module of the tests, by its name below ``tests``."""
    if NAME not in sys.modules:
        sys.path.insert(1, str(TESTS.parent / "tools"))
        from repo_paths import link_package

        sys.path.insert(1, str(link_package()))
        place = TESTS / "__init__.py"
        spec = importlib.util.spec_from_file_location(NAME, place, submodule_search_locations=[str(TESTS)])
        assert spec is not None and spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{module}")


def _model(family: str) -> Any:
    return _tests("templates.tiny_families").model(family)


def _clip(width: int) -> comfy.sd.CLIP:
    """A CLIP of two layers with core's own tokenizer; what it says of the whole prompt is as wide as its words."""
    config = {"num_hidden_layers": 2, "hidden_size": width, "num_attention_heads": 4, "intermediate_size": width}
    config |= {"hidden_act": "quick_gelu", "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    config |= {"layer_norm_eps": 1e-5}

    class Target:
        params: dict[str, Any] = {}
        clip = functools.partial(
            comfy.sd1_clip.SD1ClipModel,
            clip_model=functools.partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=config),
        )
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    made = comfy.sd.CLIP(Target)
    _tests("host.tiny").randomise(made.cond_stage_model, seed=5)
    return made


def _vae(channels: int) -> comfy.sd.VAE:
    network = comfy.taesd.taesd.TAESD(latent_channels=channels)
    _tests("host.tiny").randomise(network, seed=6)
    # FLUX.2's 128 channels are 32 at twice the size: what the weights do not say.
    return comfy.sd.VAE(sd=network.state_dict(), metadata={"tae_latent_channels": channels})


class _Node:
    CATEGORY = "tests"
    FUNCTION = "made"
    RETURN_TYPES: tuple[str, ...] = ()
    ASKS: dict[str, tuple[str]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": cls.ASKS}


class TinyCheckpoint(_Node):
    ASKS = {"family": ("STRING",)}
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def made(self, family: str) -> tuple[Any, ...]:
        return _model(family), _clip(48), _vae(4)


class TinyModel(_Node):
    ASKS = {"family": ("STRING",)}
    RETURN_TYPES = ("MODEL",)

    def made(self, family: str) -> tuple[Any, ...]:
        return (_model(family),)


class TinyClip(_Node):
    ASKS = {"width": ("INT",)}
    RETURN_TYPES = ("CLIP",)

    def made(self, width: int) -> tuple[Any, ...]:
        return (_clip(width),)


class TinyVae(_Node):
    ASKS = {"channels": ("INT",)}
    RETURN_TYPES = ("VAE",)

    def made(self, channels: int) -> tuple[Any, ...]:
        return (_vae(channels),)


class TinyVision(_Node):
    ASKS = {"kind": ("STRING",)}
    RETURN_TYPES = ("CLIP_VISION",)

    def made(self, kind: str) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as folder:
            # What DINOv2 knows of places is for 37 x 37 patches, on any host.
            size = {"image_size": 518, "patch_size": 14} if kind == "dinov2" else {}
            return (_tests("host.tiny_encoders").core_clip_vision(kind, Path(folder), **size),)


class TinyControlNet(_Node):
    ASKS = {"family": ("STRING",)}
    RETURN_TYPES = ("CONTROL_NET",)

    def made(self, family: str) -> tuple[Any, ...]:
        config = {k: v for k, v in _model(family).model.model_config.unet_config.items() if k != "out_channels"}
        config |= {"operations": comfy.ops.manual_cast, "device": "cpu", "dtype": torch.float32}
        config.pop("transformer_depth_output", None)
        network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3)
        _tests("host.tiny").randomise(network, seed=8)
        cpu = torch.device("cpu")
        return (comfy.controlnet.ControlNet(network, load_device=cpu, manual_cast_dtype=None),)


EMPTY_FILES: dict[str, Any] = {
    "Illustrious-XL-v0.1.safetensors": lambda: TinyCheckpoint().made("SDXL"),
    "sd_xl_base_1.0.safetensors": lambda: TinyCheckpoint().made("SDXL"),
    "z_image_turbo_bf16.safetensors": lambda: TinyModel().made("ZImage"),
    "qwen_3_4b.safetensors": lambda: TinyClip().made(48),
    "ae.safetensors": lambda: TinyVae().made(16),
}


def _instead(kind: type, method: str, folder: str) -> None:
    """The method of a loader node, which hands out a small model where the file is empty."""
    load = getattr(kind, method)

    @functools.wraps(load)
    def loaded(self: Any, **inputs: Any) -> Any:  # as the executor calls it, the name first
        name = next(iter(inputs.values()))
        path = folder_paths.get_full_path(folder, name)
        if path is not None and Path(path).stat().st_size == 0:
            return EMPTY_FILES[name]()
        return load(self, **inputs)

    setattr(kind, method, loaded)


_instead(nodes.CheckpointLoaderSimple, "load_checkpoint", "checkpoints")
_instead(nodes.UNETLoader, "load_unet", "diffusion_models")
_instead(nodes.CLIPLoader, "load_clip", "text_encoders")
_instead(nodes.VAELoader, "load_vae", "vae")

NODES = (TinyCheckpoint, TinyModel, TinyClip, TinyVae, TinyVision, TinyControlNet)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
