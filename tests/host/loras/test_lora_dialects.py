"""Every dialect the host maps, on every family: all keys are applied or named, on the weights the host would patch."""

import comfy.lora
import comfy.lora_convert
import pytest
import torch

from lora_conductor.host.loras.file import LoraFile
from lora_conductor.host.loras.patches import model_patches
from lora_conductor.host.loras.targets import Target

from .. import tiny
from ..families.catalogue import FAMILIES
from ..families.family import build

# Up- and down-projection, as trainers write them after the name of a layer: kohya and LyCORIS, diffusers' two old
# forms and PEFT's, Mochi's, transformers', and that of PEFT with the adapter's name left in.
SPELLINGS = {
    "kohya": (".lora_up.weight", ".lora_down.weight"),
    "diffusers, old": ("_lora.up.weight", "_lora.down.weight"),
    "diffusers": (".lora.up.weight", ".lora.down.weight"),
    "PEFT": (".lora_B.weight", ".lora_A.weight"),
    "PEFT, named": (".lora_B.default.weight", ".lora_A.default.weight"),
    "Mochi": (".lora_B", ".lora_A"),
    "transformers": (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
}
HEADS = {
    "lora_unet_": "kohya, OneTrainer",
    "lora_prior_unet_": "OneTrainer, Stable Cascade",
    "lora_transformer_": "OneTrainer",
    "lycoris_": "LyCORIS",
    "unet.base_model.model.": "PEFT, old",
    "base_model.model.": "PEFT",
    "unet.": "diffusers",
    "transformer.": "diffusers",
    "diffusion_model.": "generic",
    "": "bare",
}
KOHYA = "kohya, OneTrainer"
# Families with maps of their own in the host; the others have kohya's dialect and the generic one, as in the grid.
EXPECTED = {
    "SD15": {"LyCORIS", "diffusers", "bare"},
    "SDXL": {"LyCORIS", "diffusers", "bare"},
    "Stable_Cascade_C": {"OneTrainer, Stable Cascade"},
    "SD3": {"OneTrainer", "LyCORIS", "PEFT", "diffusers"},
    "AuraFlow": {"diffusers"},
    "PixArtAlpha": {"PEFT", "PEFT, old", "diffusers"},
    "PixArtSigma": {"PEFT", "PEFT, old", "diffusers"},
    "HunyuanDiT": {"PEFT"},
    "Flux": {"OneTrainer", "LyCORIS", "diffusers", "bare"},
    "Flux2": {"OneTrainer", "LyCORIS", "diffusers", "bare"},
    "Chroma": {"OneTrainer", "LyCORIS", "diffusers", "bare"},
    "GenmoMochi": {"bare"},
    "HunyuanVideo": {"diffusers"},
    "HiDream": {"LyCORIS", "diffusers"},
    "ACEStep": {"bare"},
    "ACEStep15": {"PEFT", "LyCORIS"},
    "Omnigen2": {"bare"},
    "QwenImage": {"LyCORIS", "diffusers", "bare"},
    "Krea2": {"LyCORIS", "diffusers", "bare"},
    "Lumina2": {"LyCORIS", "diffusers", "bare"},
    "ZImage": {"LyCORIS", "diffusers", "bare"},
    "Kandinsky5": {"diffusers", "bare"},
    "ErnieImage": {"diffusers"},
    "LTXV": {"bare"},
    "WAN21_T2V": set(),
}


def dialects(model):
    """Prefixes of layers' weights with their shapes, by dialect; where one has two names for a target, the last."""
    shapes, found = tiny.layer_shapes(model), {}
    for prefix, raw in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        target = target_of(raw)
        if target.key in shapes:
            head = next(head for head in HEADS if prefix.startswith(head))
            shape = list(shapes[target.key])
            if target.offset is not None:
                shape[target.offset[0]] = target.offset[2]
            found.setdefault(HEADS[head], {})[target.key, target.offset] = (prefix, shape)
    return {dialect: dict(layers.values()) for dialect, layers in found.items()}


def target_of(raw):
    return Target(raw) if isinstance(raw, str) else Target(*raw)


def dictionary(prefixes, spelling, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for prefix, shape in prefixes.items():
        up, down = spelling
        tensors[prefix + up] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=generator)
        tensors[prefix + down] = torch.randn(2, *shape[1:], generator=generator)
        tensors[f"{prefix}.alpha"] = torch.tensor(1.0)
    return tensors


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_of_every_dialect_goes_where_the_host_puts_it(name, host, record_property):
    family = FAMILIES[name]
    if not family.in_host:
        pytest.skip(f"this ComfyUI has no {name}")
    patcher = build(family)
    found, spellings, applied = dialects(patcher), list(SPELLINGS.values()), 0
    if host.version_tuple >= (0, 30, 0):
        assert found.keys() >= {KOHYA, "generic"} | EXPECTED[name]
    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    for turn, (dialect, prefixes) in enumerate(found.items()):
        tensors = dictionary(prefixes, spellings[turn % len(spellings)])
        patches = model_patches(LoraFile(dialect, "", f"{name} {dialect}", tensors), patcher)
        core = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), key_map, log_missing=False)
        ours = {target.core_key for target in (*patches.routed, *patches.merged)}
        assert not patches.unmatched and patches.applied | patches.refused_keys == set(tensors), dialect
        # The host's maps have a few slices that do not fit, and there it only logs that it could not.
        left = {str(target_of(raw)) for raw in set(core) - ours}
        assert ours <= set(core) and left == set(patches.refused), dialect
        applied += len(patches.applied)
    record_property(f"{name}: keys applied in {len(found)} dialects", str(applied))


@pytest.mark.parametrize("label", SPELLINGS)
def test_every_spelling_is_applied(label):
    patcher = build(FAMILIES["Flux"])
    prefixes = dialects(patcher)["diffusers"]
    tensors = dictionary(prefixes, SPELLINGS[label])
    patches = model_patches(LoraFile(label, "", label, tensors), patcher)
    # Diffusers has the halves of this modulation the other way round: the host merges it.
    assert [target.key for target in patches.merged] == ["diffusion_model.final_layer.adaLN_modulation.1.weight"]
    assert patches.applied == set(tensors) and not patches.refused and not patches.unmatched
