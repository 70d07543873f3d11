"""The fused forward against ComfyUI's own merged LoRAs. Figures are printed: run with `-s`, or see the summary."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Paper, Sum
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import attachment_of, fused, live_of, set_policy, with_roles_alone
from lora_conductor.host.loras import loras_on, model_patches, read_lora

from .. import tiny

MODELS = {"flux": tiny.tiny_flux, "unet": tiny.tiny_unet}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    shapes = tiny.layer_shapes(model)
    half = dict(list(shapes.items())[::2])
    return {
        "subject": tiny.make_lora(folder / "subject.safetensors", shapes, seed=1),
        "style": tiny.make_lora(folder / "style.safetensors", shapes, seed=2, rank=8, alpha=None),
        "half": tiny.make_lora(folder / "half.safetensors", half, seed=3, alpha=1.0),
    }


def figure(record_property, name, error):
    record_property(name, error)
    print(f"{name}: {error:.1e} of the range")
    assert error <= 1e-4


def test_sum_equals_two_stacked_loaders(model, files, record_property):
    ours = tiny.sample(fused(model, (files["subject"], 0.8), (files["style"], -0.6), policy=Sum(), always_live=True))
    core = tiny.core_stacked(model, (files["subject"], 0.8), (files["style"], -0.6))
    assert tiny.relative(tiny.sample(model), tiny.sample(core)) > 0.01, "the LoRAs should matter"
    figure(record_property, "sum vs two stacked loaders", tiny.relative(ours, tiny.sample(core)))


def test_sum_equals_stacked_loaders_after_several_guided_steps(model, files, record_property):
    kw = {"steps": 4, "cfg": 3.0, "batch": 2}
    ours = fused(model, (files["subject"], 0.2), (files["half"], 0.2), policy=Sum(), always_live=True)
    core = tiny.core_stacked(model, (files["subject"], 0.2), (files["half"], 0.2))
    figure(record_property, "4 steps, cfg 3", tiny.relative(tiny.sample(ours, **kw), tiny.sample(core, **kw)))


@pytest.mark.parametrize("policy", [None, Paper(), KLSoft()], ids=["recommended", "paper", "kl_soft"])
def test_one_lora_equals_one_loader_whatever_the_policy(model, files, record_property, policy):
    ours = fused(model, (files["subject"], 0.9), (files["style"], 0.0), policy=policy, always_live=True)
    core = tiny.core_stacked(model, (files["subject"], 0.9))
    figure(record_property, "one LoRA vs one loader", tiny.relative(tiny.sample(ours), tiny.sample(core)))


def test_sum_is_left_to_core_and_taken_off_again(model, files):
    """As a user gets it, `sum` is core's own merge, bit for bit; another policy after it takes it off without trace."""
    live = fused(model, (files["subject"], 0.8), (files["style"], -0.6))
    summed = set_policy(live, Sum())
    core = tiny.core_stacked(model, (files["subject"], 0.8), (files["style"], -0.6))
    assert torch.equal(tiny.sample(summed), tiny.sample(core))
    assert not summed.wrappers.get("apply_model")
    again = set_policy(summed, Paper())
    assert not again.patches and torch.equal(tiny.sample(again), tiny.sample(set_policy(live, Paper())))


def test_zero_strengths_equal_no_lora(model, files):
    ours = fused(model, (files["subject"], 0.0), (files["style"], 0.0), policy=RECOMMENDED, always_live=True)
    assert torch.equal(tiny.sample(ours), tiny.sample(model))


def test_chained_loaders_keep_the_first(model, files, record_property):
    first = fused(model, (files["subject"], 0.5))
    both = fused(first, (files["half"], 0.3), (files["style"], 0.7), policy=Sum(), always_live=True)
    core = tiny.core_stacked(model, (files["subject"], 0.5), (files["style"], 0.7), (files["half"], 0.3))
    figure(record_property, "three LoRAs, two loaders", tiny.relative(tiny.sample(both), tiny.sample(core)))


def test_core_loras_before_ours_stay(model, files, record_property):
    before = tiny.core_stacked(model, (files["half"], 0.4))
    ours = fused(before, (files["subject"], 0.5), (files["style"], 0.7), policy=Sum(), always_live=True)
    core = tiny.core_stacked(model, (files["half"], 0.4), (files["subject"], 0.5), (files["style"], 0.7))
    figure(record_property, "beside a core LoRA", tiny.relative(tiny.sample(ours), tiny.sample(core)))


def test_router_may_stand_before_the_loader(model, files):
    loras = (files["subject"], 0.8), (files["style"], 0.6)
    before, after = fused(set_policy(model, Paper()), *loras), fused(model, *loras, policy=Paper())
    assert attachment_of(before).spec.policy == Paper()
    assert torch.equal(tiny.sample(before), tiny.sample(after))


def test_tucker_and_flattened_conv_equal_core(tmp_path, record_property):
    model = tiny.tiny_unet()
    torch.manual_seed(0)
    tensors = {}
    for key, shape in tiny.layer_shapes(model).items():
        if len(shape) == 4 and shape[2] == 3:
            prefix = key.removesuffix(".weight")
            tensors[f"{prefix}.lora_up.weight"] = torch.randn(shape[0], 3, 1, 1) * 0.2
            tensors[f"{prefix}.lora_down.weight"] = torch.randn(3, shape[1], 1, 1) * 0.2
            tensors[f"{prefix}.lora_mid.weight"] = torch.randn(3, 3, 3, 3) * 0.2
            tensors[f"{prefix}.alpha"] = torch.tensor(1.5)
    path = tmp_path / "tucker.safetensors"
    save_file(tensors, path)
    flat = tmp_path / "flat.safetensors"
    save_file({k: v.flatten(1) if "alpha" not in k else v for k, v in tensors.items() if "mid" not in k}, flat)
    ours = fused(model, (path, 0.8), policy=Sum(), always_live=True)
    assert len(attachment_of(ours).spec.loras[0].deltas) == len(tensors) // 4
    figure(
        record_property,
        "Tucker LoCon",
        tiny.relative(tiny.sample(ours), tiny.sample(tiny.core_stacked(model, (path, 0.8)))),
    )


def diffusers_flux_lora(path, kohya_path, model):
    """The same fused qkv LoRAs in diffusers' dialect: to_q/k/v on slices of the fused weight."""
    hidden = model.model.model_config.unet_config["hidden_size"]
    source, tensors = load_file(kohya_path), {}
    for i in range(model.model.model_config.unet_config["depth"]):
        prefix = f"diffusion_model.double_blocks.{i}.img_attn.qkv"
        for j, part in enumerate("qkv"):
            base = f"transformer.transformer_blocks.{i}.attn.to_{part}"
            tensors[f"{base}.lora_A.weight"] = source[f"{prefix}.lora_down.weight"].clone()
            tensors[f"{base}.lora_B.weight"] = source[f"{prefix}.lora_up.weight"][j * hidden : (j + 1) * hidden].clone()
    save_file(tensors, path)
    return path


def test_two_dialects_of_a_fused_layer_meet(tmp_path, record_property):
    model = tiny.tiny_flux()
    shapes = {k: v for k, v in tiny.layer_shapes(model).items() if "img_attn.qkv" in k}
    whole = tiny.make_lora(tmp_path / "whole.safetensors", shapes, seed=1)
    sliced = diffusers_flux_lora(
        tmp_path / "sliced.safetensors", tiny.make_lora(tmp_path / "b.safetensors", shapes, seed=2, alpha=None), model
    )
    ours = fused(model, (whole, 0.8), (sliced, 0.6), policy=Sum(), always_live=True)
    segments = [s for layer in attachment_of(ours).spec.layers for s in layer.segments]
    assert len(segments) == 3 * len(shapes) and all(s.shared for s in segments)
    core = tiny.core_stacked(model, (whole, 0.8), (sliced, 0.6))
    figure(record_property, "whole and sliced qkv", tiny.relative(tiny.sample(ours), tiny.sample(core)))


def test_what_cannot_be_routed_is_merged_as_core_does(tmp_path, record_property):
    """A replaced weight, a norm scale and a bias: core applies them, the report names them."""
    model = tiny.tiny_unet()
    torch.manual_seed(0)
    shapes = [(k.removesuffix(".weight"), v) for k, v in tiny.layer_shapes(model).items() if len(v) == 2]
    (replaced, replaced_shape), (plain, plain_shape) = shapes[:2]
    tensors = {
        f"{replaced}.set_weight": torch.randn(replaced_shape) * replaced_shape[1] ** -0.5,
        f"{plain}.lora_up.weight": torch.randn(plain_shape[0], 4) * 0.2,
        f"{plain}.lora_down.weight": torch.randn(4, plain_shape[1]) * 0.2,
        f"{plain}.diff_b": torch.randn(plain_shape[0]) * 0.2,
        "diffusion_model.out.0.diff": torch.randn(64) * 0.2,
    }
    path = tmp_path / "mixed.safetensors"
    save_file(tensors, path)
    patches = model_patches(read_lora("mixed", str(path)), model)
    assert [str(t) for t in patches.routed] == [f"{plain}.weight"]
    assert {str(t) for t in patches.merged} == {
        f"{replaced}.weight",
        f"{plain}.bias",
        "diffusion_model.out.0.weight",
    }
    assert not patches.refused and not patches.unmatched and len(patches.applied) == len(tensors)
    ours = fused(model, style=(path, 0.7))
    core = tiny.sample(tiny.core_stacked(model, (path, 0.7)))
    assert tiny.relative(tiny.sample(model), core) > 0.01
    figure(record_property, "merged beside routed", tiny.relative(tiny.sample(ours), core))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_cores_merge(tmp_path, dtype):
    """Against the float32 result, ours errs no more than core's merge of the same files into low precision."""
    exact = tiny.tiny_flux()
    shapes = tiny.layer_shapes(exact)
    loras = [(tiny.make_lora(tmp_path / f"{i}.safetensors", shapes, seed=i, size=0.1), 0.8) for i in (1, 2)]
    truth = tiny.sample(tiny.core_stacked(exact, *loras))
    low = tiny.tiny_flux(dtype)
    ours = fused(low, loras[0], loras[1], policy=Sum(), always_live=True)
    core_error = tiny.relative(tiny.sample(tiny.core_stacked(low, *loras)), truth)
    our_error = tiny.relative(tiny.sample(ours), truth)
    print(f"{dtype}: ours {our_error:.1e}, core {core_error:.1e}")
    assert our_error <= 1.2 * core_error


@pytest.mark.parametrize("roles", [(), ("subject",), ("style",), ("subject", "style")], ids="+".join)
def test_the_loras_of_some_roles_are_core_s_loaders_bit_for_bit(model, files, tmp_path, roles):
    """Also where a file holds what cannot be routed, and the same file stands in both roles."""
    norm = next(key for key in model.model.state_dict() if "norm" in key and key.endswith((".weight", ".scale")))
    tensors = load_file(files["subject"])
    tensors[f"{norm.removesuffix('.weight')}.diff"] = torch.randn(model.model.state_dict()[norm].shape)
    save_file(tensors, tmp_path / "both.safetensors")
    subject = (tmp_path / "both.safetensors", 0.8)
    for style in ((files["style"], -0.6), subject):
        of = {"subject": subject, "style": style}
        ours = fused(model, of["subject"], of["style"])
        assert any(lora.merged for lora in loras_on(ours))
        core = tiny.core_stacked(model, *(of[role] for role in roles))
        alone = with_roles_alone(ours, roles)
        assert torch.equal(tiny.sample(alone), tiny.sample(core))
        assert [lora.role for lora in loras_on(alone)] == list(roles)
        with pytest.raises(ConductorError, match="carries no LoRAs"):
            live_of(alone)
        assert attachment_of(ours).live is not None
        assert not torch.equal(tiny.sample(ours), tiny.sample(core)), "the model it was made of fuses as before"
