"""Four real LoRA files, by their keys, on models of the real size: what is applied, against the host's own loader."""

from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.supported_models
import pytest
import torch
from safetensors.torch import save_file

from lora_conductor.host.loras.file import read_lora
from lora_conductor.host.loras.patches import model_patches

from .. import tiny

LISTINGS = Path(__file__).parent / "lora_keys"
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
}
REAL = {
    "SD15": {
        **UNET,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
    "SDXL": {
        **UNET,
        "num_classes": "sequential",
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    },
    "Flux": {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 768,
        "context_in_dim": 4096,
        "hidden_size": 3072,
        "mlp_ratio": 4.0,
        "num_heads": 24,
        "depth": 19,
        "depth_single_blocks": 38,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "txt_ids_dims": [],
    },
    "ZImage": {
        "patch_size": 2,
        "in_channels": 16,
        "dim": 3840,
        "cap_feat_dim": 2560,
        "n_layers": 30,
        "n_heads": 30,
        "n_kv_heads": 30,
        "qk_norm": True,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8.0 / 3.0,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    },
}


def real_model(name):
    """Of the real size, with no memory behind its weights."""
    cls = getattr(comfy.supported_models, name)
    config = cls({**cls.unet_config, **REAL[name]})
    config.unet_config |= REAL[name]
    config.set_inference_dtype(torch.float32, None)
    return tiny.patcher(config.get_model({}, device="meta"))


def file_of(name, path, key_map, weights):
    """A file with exactly the listed keys, of rank 1."""
    suffixes, *components = (LISTINGS / f"{name}.txt").read_text().split("\n")[:-1]
    tensors = {}
    for component in components:
        raw = key_map[component]
        key, offset = (raw, None) if isinstance(raw, str) else raw[:2]
        shape = list(weights[key].shape)
        if offset is not None:
            shape[offset[0]] = offset[2]
        ones = [1] * (len(shape) - 2)
        parts = {
            "alpha": torch.tensor(1.0),
            "dora_scale": torch.ones(shape[0], 1, *ones),
            "lora_up.weight": torch.ones(shape[0], 1, *ones),
            "lora_down.weight": torch.ones(1, *shape[1:]),
        }
        parts |= {"lora_A.weight": parts["lora_down.weight"], "lora_B.weight": parts["lora_up.weight"]}
        tensors |= {f"{component}.{suffix}": parts[suffix] for suffix in suffixes.split()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", REAL)
def test_every_key_of_a_real_file_is_applied(name, tmp_path, record_property):
    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    model = real_model(name)
    weights = model.model.state_dict()
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    path = file_of(name, tmp_path / "real.safetensors", key_map, weights)
    patches = model_patches(read_lora(path.name, str(path)), model)
    tensors = patches.file.tensors

    core = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), key_map, log_missing=False)
    assert {target.core_key for target in patches.routed} == set(core)
    assert not patches.merged and not patches.refused and not patches.unmatched
    assert patches.applied == set(tensors)
    record_property(f"{name}: keys applied at run time", str(len(patches.applied)))
