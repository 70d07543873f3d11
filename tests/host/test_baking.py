"""A baked LoRA against the live fusion: core loads the file, one forward pass, the same result."""

import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.policies import RECOMMENDED, TIES, Composite, KLoRA, KLSoft, NPLoRA, Paper, Sum, Switch
from lora_conductor.host.baking import BakeSettings, bake
from lora_conductor.host.errors import ConductorError
from lora_conductor.host.fusion_patch import add_loras, attachment_of, set_policy
from lora_conductor.host.lora_patches import model_patches
from lora_conductor.host.lora_reading import read_lora

from . import tiny

STEPS = 4
EXACT = BakeSettings(dtype=torch.float32)
LIVE = {
    "recommended": RECOMMENDED,
    "kl_soft": KLSoft(),
    "paper": Paper(),
    "k_lora": KLoRA(),
    "switch": Switch(2),
}


def loaded(model, *loras):
    patches = [(model_patches(read_lora(path.name, str(path)), model), role, s) for role, path, s in loras]
    return add_loras(model, patches)


def sliced_lora(path, model, rank=3):
    """q, k and v of FLUX's image stream apart, and its output projection: diffusers' dialect."""
    generator = torch.Generator().manual_seed(5)
    config = model.model.model_config.unet_config
    hidden, tensors = config["hidden_size"], {}
    for i in range(config["depth"]):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            prefix = f"transformer.transformer_blocks.{i}.attn.{part}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) * hidden**-0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator) * 0.5
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module", params=["flux", "flux_sliced", "unet"])
def setting(request, tmp_path_factory):
    """A model, and the same with two LoRAs that share a part of their layers."""
    folder = tmp_path_factory.mktemp("loras")
    subject, style = folder / "subject.safetensors", folder / "style.safetensors"
    model = tiny.tiny_unet() if request.param == "unet" else tiny.tiny_flux()
    shapes = list(tiny.layer_shapes(model).items())
    tiny.make_lora(subject, dict(s for i, s in enumerate(shapes) if i % 3 != 0), seed=1, size=0.2)
    if request.param == "flux_sliced":
        tiny.make_lora(subject, {k: s for k, s in shapes if "double_blocks" in k}, seed=1, size=0.2)
        sliced_lora(style, model)
    else:
        tiny.make_lora(style, dict(s for i, s in enumerate(shapes) if i % 3 != 1), rank=3, seed=2, size=0.2)
    return model, loaded(model, ("subject", subject, 0.8), ("style", style, 0.7))


def with_file(model, baked, path):
    """The model with the baked file on it, by core's own loader."""
    save_file(baked.tensors, path)
    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0)[0]


def steps_of(model, steps=STEPS):
    """A run at cfg 1: its latent, and before each step its noise level and latent, and what was predicted there."""
    seen = []
    made = tiny.sample(model, steps=steps, callback=lambda step, x0, x, total: seen.append((x.clone(), x0.clone())))
    sigmas = attachment_of(model).live.record_of(made).sigmas
    return made, [(sigma, x, x0) for sigma, (x, x0) in zip(sigmas, seen, strict=False)]


def predicted(model, sigma, x):
    """One forward pass at a latent in the middle of a run."""
    seen = []
    tiny.sample(
        model,
        noise=x / sigma,
        sigmas=torch.tensor([sigma, sigma / 2]),
        callback=lambda step, x0, x, total: seen.append(x0.clone()),
    )
    return seen[0]


@pytest.mark.parametrize("name", LIVE)
def test_one_step_is_the_fused_forward_at_that_step(setting, tmp_path, record_property, name):
    model, fused = setting
    fused = set_policy(fused, LIVE[name])
    made, steps = steps_of(fused)
    errors = []
    for step in (1, STEPS - 1):
        sigma, x, live = steps[step]
        baked, _ = bake(fused, None, made, BakeSettings(step, 0, torch.float32))
        assert not baked.left_out
        ours = predicted(with_file(model, baked, tmp_path / "baked.safetensors"), sigma, x)
        assert tiny.relative(predicted(model, sigma, x), live) > 1e-3
        errors.append(tiny.relative(ours, live))
    record_property(f"{name}, one step", max(errors))
    assert max(errors) < 1e-5
