"""Quantised models, whose weights say nothing of the dtype or even the shape to compute in."""

import json

import comfy.sd
import comfy.utils
import pytest
import torch

from lora_conductor.fusion.policies import RECOMMENDED, Sum
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.fusing import attachment_of, fused, set_policy

from .. import adapter_files, tiny

STRENGTHS = (0.8, 0.6)
KINDS = {"lora": ("lora", "lora"), "loha and lokr": ("loha", "lokr"), "dora": ("dora_out_lora",), "oft": ("oft",)}


def fp8_scaled(name, weight, tensors):
    scale = weight.abs().max() / 448
    tensors[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    tensors[f"{name}.scale_weight"] = scale
    return tensors[f"{name}.weight"].float() * scale


def int8(name, weight, tensors):
    scale = weight.abs().max() / 127
    tensors[f"{name}.weight"] = (weight / scale).round().to(torch.int8)
    tensors[f"{name}.weight_scale"] = scale
    conf = {"format": "int8_tensorwise", "full_precision_matrix_mult": True}
    tensors[f"{name}.comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    return tensors[f"{name}.weight"].float() * scale


def quantised(quantise):
    """The tiny FLUX with its blocks' linears quantised, by core's own loader; and what they stand for."""
    tensors = {key: value.float() for key, value in tiny.first_blocks().items()}
    exact = dict(tensors)
    for key in [k for k in tensors if "_blocks." in k and k.endswith(".weight") and tensors[k].ndim == 2]:
        exact[key] = quantise(key.removesuffix(".weight"), tensors[key], tensors)
    if quantise is fp8_scaled:
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        tensors, _ = comfy.utils.convert_old_quants(tensors)
    options = {"dtype": torch.float32}
    with torch.inference_mode():  # as nodes do; core's quantised tensors cannot be moved there otherwise
        model = comfy.sd.load_diffusion_model_state_dict(tensors, options)
        return model, comfy.sd.load_diffusion_model_state_dict(exact, options)


class PackedLinear(torch.nn.Module):
    """As GGUF loaders do it: a weight of bytes, two numbers in each, that only the forward can unpack."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.abs().max() / 7
        codes = (linear.weight / self.scale).round().clamp(-8, 7).to(torch.int16) + 8
        self.weight = torch.nn.Parameter((codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8), requires_grad=False)
        self.bias = linear.bias

    def unpacked(self):
        codes = self.weight.to(torch.int16)
        return torch.stack([codes // 16, codes % 16], dim=-1).flatten(1).sub(8).float() * self.scale

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x)
        return torch.nn.functional.linear(x, self.unpacked().to(x), bias)


def packed():
    model, exact = tiny.tiny_unet(), tiny.tiny_unet()
    pairs = zip(model.model.named_modules(), exact.model.named_modules(), strict=True)
    for (name, module), (_, twin) in list(pairs):
        if hasattr(module, "in_features") and "transformer_blocks" in name:
            layer = PackedLinear(module)
            owner, _, leaf = name.rpartition(".")
            setattr(model.model.get_submodule(owner), leaf, layer)
            with torch.no_grad():
                twin.weight.copy_(layer.unpacked())
    return tiny.patcher(model.model), exact


MODELS = {"fp8 scaled": lambda: quantised(fp8_scaled), "int8": lambda: quantised(int8), "packed": packed}


@pytest.fixture(scope="module", params=MODELS)
def models(request):
    try:
        return MODELS[request.param]()
    except (KeyError, AttributeError) as error:
        pytest.skip(f"this ComfyUI does not know {request.param} ({error})")


@pytest.mark.parametrize("kinds", KINDS)
def test_live_sum_is_the_merge_into_what_the_weights_stand_for(models, kinds, tmp_path, record_property):
    model, exact = models
    shapes = {key: s for key, s in tiny.layer_shapes(exact, conv=False).items() if "_blocks." in key}
    paths = [
        adapter_files.make_file(tmp_path / f"{i}.safetensors", kind, shapes, i, 0.1)
        for i, kind in enumerate(KINDS[kinds])
    ]
    loras = list(zip(paths, STRENGTHS, strict=False))
    loaded = fused(model, *loras)
    assert [len(lora.deltas) for lora in attachment_of(loaded).spec.loras] == [len(shapes)] * len(loras)
    truth = tiny.sample(tiny.core_stacked(exact, *loras), steps=2)
    plain = tiny.sample(model, steps=2)
    # Core's int8 layers round their inputs too: without any LoRA that much is lost. By chance more or less, and
    # differently on every processor: of several noises.
    losses = [tiny.relative(tiny.sample(model, steps=2, seed=s), tiny.sample(exact, steps=2, seed=s)) for s in range(4)]
    rounding = max(losses)
    error = tiny.relative(tiny.sample(set_policy(loaded, Sum(), always_live=True), steps=2), truth)
    record_property(f"{kinds}, without LoRAs {rounding:.1e}", error)
    assert tiny.relative(plain, truth) > 0.03 and error < max(1e-5, 1.5 * rounding) and min(losses) < 0.03
    # One LoRA alone: what core would merge into such weights is rounded like them.
    alone, exactly = fused(model, loras[0]), tiny.core_stacked(exact, loras[0])
    assert tiny.relative(tiny.sample(alone, steps=2), tiny.sample(exactly, steps=2)) < max(1e-5, 1.5 * rounding)
    for policy, settings in ((RECOMMENDED, None), (RECOMMENDED, Refinement(granularity="head", cap=1.0))):
        assert tiny.sample(set_policy(loaded, policy, settings), steps=2).isfinite().all()
    assert torch.equal(tiny.sample(model, steps=2), plain)
