"""Files and settings as people bring them: what is not used harms nobody, and what is missing is said."""

from __future__ import annotations

import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import load_loras
from lora_conductor.host.loras import LoraChoice, choices_of_stack

from .. import tiny

NAME = "odd.safetensors"


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_unet()


@pytest.fixture
def lora(models_dir, model):
    """A LoRA file in ComfyUI's folder, and what writes it anew with other tensors."""
    path = models_dir / "loras" / NAME
    tiny.make_lora(path, tiny.layer_shapes(model, conv=False), seed=3)
    yield path
    path.unlink()


def change(path, **tensors):
    save_file(load_file(path) | tensors, path)


def load(model, strength=1.0, clip_strength=1.0, clip=None):
    return load_loras(model, clip, [LoraChoice(NAME, "subject", strength, clip_strength)])


def core(model, path, strength=1.0):
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


@pytest.mark.parametrize("damage", ["wrong family", "cut off", "empty", "not a LoRA"])
def test_strength_0_leaves_the_model_alone_whatever_the_file_is(model, lora, damage):
    if damage == "wrong family":
        save_file({"lora_unet_nowhere.lora_up.weight": torch.ones(2, 2)}, lora)
    elif damage == "cut off":
        lora.write_bytes(lora.read_bytes()[:200])
    else:
        lora.write_bytes(b"" if damage == "empty" else b"hello, I am no LoRA")
    with pytest.raises(ConductorError):
        load(model)
    # The strength of a text encoder's part counts for nothing without a text encoder.
    same, _, _ = load(model, 0.0, 1.0)
    assert torch.equal(tiny.sample(same), tiny.sample(model))


def test_what_nobody_uses_may_be_anything(model, lora):
    change(lora, **{"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.full((4, 2), torch.nan)})
    loaded, _, report = load(model)
    assert "1 keys that are not applied hold NaN or infinite values" in report
    assert tiny.relative(tiny.sample(loaded), tiny.sample(core(model, lora))) < 1e-5


def test_what_is_used_is_refused_by_name(model, lora):
    key = next(key for key in load_file(lora) if key.endswith("lora_up.weight"))
    change(lora, **{key: load_file(lora)[key] * torch.inf})
    with pytest.raises(ConductorError, match=f"'{NAME}' holds NaN or infinite values in 1 of .*{key}"):
        load(model)


@pytest.mark.parametrize("alpha", [torch.inf, torch.nan, 0.0])
def test_alpha_of_whole_lokr_matrices_is_not_used(model, lora, alpha):
    """As ai-toolkit writes them: 9999999999 does not fit into float16 (ComfyUI #10973)."""
    key = next(key for key, shape in tiny.layer_shapes(model, conv=False).items() if shape[0] % 4 == shape[1] % 4 == 0)
    out, width = tiny.layer_shapes(model)[key]
    prefix = key.removesuffix(".weight")
    generator = torch.Generator().manual_seed(0)
    factors = {
        f"{prefix}.lokr_w1": torch.randn(4, 4, generator=generator).half(),
        f"{prefix}.lokr_w2": torch.randn(out // 4, width // 4, generator=generator).half() * 0.3,
        f"{prefix}.alpha": torch.tensor(alpha).half(),
    }
    save_file(factors, lora)
    loaded, _, _ = load(model)
    expected = tiny.sample(core(model, lora))
    assert tiny.relative(tiny.sample(loaded), expected) < 1e-4
    assert tiny.relative(tiny.sample(model), expected) > 1e-3


def test_an_alpha_that_is_used_is_refused(model, lora):
    key = next(key for key in load_file(lora) if key.endswith(".alpha"))
    change(lora, **{key: torch.tensor(torch.inf)})
    with pytest.raises(ConductorError, match="alpha inf is not a finite number|NaN or infinite"):
        load(model)


def test_a_file_for_the_text_encoder_alone_asks_for_one(model, lora):
    save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2)}, lora)
    with pytest.raises(ConductorError, match="nothing for the diffusion model.*Connect CLIP"):
        load(model)


@pytest.mark.parametrize("last", ["", None, ()])
def test_an_empty_fourth_field_of_a_stack_says_nothing(last):
    (choice,) = choices_of_stack([(NAME, 0.5, 0.25, last)], "style", "style_stack")
    assert (choice.name, choice.strength, choice.clip_strength) == (NAME, 0.5, 0.25)


def test_a_fourth_field_that_says_something_is_refused():
    with pytest.raises(ConductorError, match="style_stack, entry 1"):
        choices_of_stack([(NAME, 0.5, 0.25, "1,0,0,1")], "style", "style_stack")
