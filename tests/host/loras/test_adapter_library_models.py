"""Whole models trained on, as it were, by the real PEFT and LyCORIS: their files in ours give what they give."""

import pytest
import torch
from safetensors.torch import save_file

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.fusing import fused
from lora_conductor.host.loras.file import read_lora
from lora_conductor.host.loras.patches import model_patches

from .. import tiny
from ..families.catalogue import FAMILIES
from ..families.family import build, sample
from ..families.grid import EXACT, MOVED

# With the classes that hold what a trainer would choose.
MODELS = {"SD15": ["BasicTransformerBlock", "ResBlock"], "Flux": ["DoubleStreamBlock", "SingleStreamBlock"]}
LYCORIS = {
    "locon": {"algo": "locon"},
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": 4},
    "oft": {"algo": "diag-oft"},
    "dora": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
}


def moved_from_the_identity(module, only=("",)):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if any(part in key for part in only) and "alpha" not in key and parameter.ndim:
                noise = torch.randn(parameter.shape, generator=generator)
                if "dora_scale" in key:
                    parameter.mul_(1 + 0.2 * noise)
                else:
                    parameter.add_(0.1 * noise)


def check(family, tensors, theirs, path, record_property, label):
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path)
    model = build(family)
    patches = model_patches(read_lora(path.name, str(path)), model)
    assert patches.applied == set(tensors) and not patches.merged, (patches.refused, patches.unmatched, patches.merged)
    ours = sample(family, fused(model, path, policy=Sum(), always_live=True))
    assert tiny.relative(sample(family, model), theirs) > MOVED
    error = tiny.relative(ours, theirs)
    record_property(f"{label} on {family.model}, {len(patches.routed)} layers", error)
    assert error < EXACT


@pytest.mark.parametrize("algorithm", LYCORIS)
@pytest.mark.parametrize("name", MODELS)
def test_lycoris(name, algorithm, tmp_path, record_property):
    lycoris = pytest.importorskip("lycoris")
    family, model = FAMILIES[name], build(FAMILIES[name])
    settings = {"linear_dim": 4, "linear_alpha": 2.0, "conv_dim": 4, "conv_alpha": 2.0, **LYCORIS[algorithm]}
    lycoris.LycorisNetwork.apply_preset({"target_module": MODELS[name], "target_name": []})
    network = lycoris.create_lycoris(model.model.diffusion_model, 1.0, **settings)
    network.apply_to()
    moved_from_the_identity(network)
    theirs = sample(family, model)
    # As its kohya module names them.
    tensors = {key.replace("lycoris_", "lora_unet_", 1): value for key, value in network.state_dict().items()}
    check(family, tensors, theirs, tmp_path / "lycoris.safetensors", record_property, f"LyCORIS {algorithm}")


@pytest.mark.parametrize("name", MODELS)
def test_peft(name, tmp_path, record_property):
    peft = pytest.importorskip("peft")
    family, model = FAMILIES[name], build(FAMILIES[name])
    layers = [key for key in tiny.layer_shapes(model) if "blocks" in key]
    names = [key.removeprefix("diffusion_model.").removesuffix(".weight") for key in layers]
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=names)
    trained = peft.get_peft_model(model.model.diffusion_model, config)
    moved_from_the_identity(trained, only=("lora_A", "lora_B"))
    tensors = {
        # PEFT keeps alpha in its configuration; converters write it beside the factors.
        key.replace("base_model.model.", "diffusion_model.", 1): value
        for key, value in peft.get_peft_model_state_dict(trained).items()
    }
    tensors |= {f"diffusion_model.{layer}.alpha": torch.tensor(2.0) for layer in names}
    theirs = sample(family, model)
    check(family, tensors, theirs, tmp_path / "peft.safetensors", record_property, "PEFT LoRA")
