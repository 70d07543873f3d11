"""Static policies through the host: the model core merges is the base model plus a dense reference merge."""

import comfy.model_management
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora_conductor.fusion.policies import (
    DARE,
    DELLA,
    RECOMMENDED,
    SVD,
    TIES,
    Average,
    MagnitudePrune,
    NPLoRA,
    Paper,
    Sum,
)
from lora_conductor.fusion.policies.static.entries import uniform
from lora_conductor.host.fusing import attachment_of, fused, set_policy

from ...fusion.dense_policies import dropped, elected_mean, keep_probability, np_lora, trimmed, truncated
from .. import tiny

ROLES = ("subject", "style")
STRENGTHS = {"subject": 0.8, "style": 0.6}
RANKS = {"subject": 4, "style": 3}


def draws(name, role, delta):
    return uniform(name, role, 0, torch.empty(delta.shape)).numpy()


# Each: (policy, dense merge of a segment's two deltas [out, in * kernel] float64).
STATIC = {
    "average": (Average(), lambda name, c, s: (c + s) / 2),
    "np_lora": (NPLoRA(), lambda name, c, s: np_lora(c, s, 0.5)),
    "svd": (SVD(rank=2), lambda name, c, s: truncated(c, s, 2)),
    "ties": (TIES(), lambda name, c, s: elected_mean(trimmed(c, 0.5), trimmed(s, 0.5))),
    "magnitude_prune": (MagnitudePrune(), lambda name, c, s: trimmed(c, 0.5) + trimmed(s, 0.5)),
    "dare": (
        DARE(),
        lambda name, c, s: dropped(c, 0.5, draws(name, "subject", c)) + dropped(s, 0.5, draws(name, "style", s)),
    ),
    "della": (
        DELLA(),
        lambda name, c, s: elected_mean(
            dropped(c, keep_probability(c, 0.5, 0.15), draws(name, "subject", c)),
            dropped(s, keep_probability(s, 0.5, 0.15), draws(name, "style", s)),
        ),
    ),
}


def sliced_flux_lora(path, model):
    """A LoRA in diffusers' dialect: q, k and v of the image stream's fused qkv apart, and the output projection."""
    generator = torch.Generator().manual_seed(5)
    config = model.model.model_config.unet_config
    hidden, tensors = config["hidden_size"], {}
    for i in range(config["depth"]):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            prefix = f"transformer.transformer_blocks.{i}.attn.{part}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANKS["style"], hidden, generator=generator) * hidden**-0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(hidden, RANKS["style"], generator=generator) * 0.5
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module", params=["flux", "unet"])
def setting(request, tmp_path_factory):
    """The model, its clone with two LoRAs, and their deltas by weight: {role: {key: [(start, stop, dense)]}}.

    FLUX: one LoRA whole on the fused qkv, the other on its slices. UNet: linears and convolutions, in part shared.
    """
    folder = tmp_path_factory.mktemp("loras")
    subject, style = folder / "subject.safetensors", folder / "style.safetensors"
    if request.param == "flux":
        model = tiny.tiny_flux()
        shapes = {k: v for k, v in tiny.layer_shapes(model).items() if "double_blocks" in k and "img_" in k}
        tiny.make_lora(subject, shapes, rank=RANKS["subject"], seed=1)
        sliced_flux_lora(style, model)
    else:
        model = tiny.tiny_unet()
        shapes = list(tiny.layer_shapes(model).items())
        tiny.make_lora(subject, dict(s for i, s in enumerate(shapes) if i % 3 != 0), rank=RANKS["subject"], seed=1)
        tiny.make_lora(style, dict(s for i, s in enumerate(shapes) if i % 3 != 1), rank=RANKS["style"], seed=2)
    loaded = fused(model, (subject, STRENGTHS["subject"]), (style, STRENGTHS["style"]))
    deltas = {}
    for lora in attachment_of(loaded).spec.loras:
        assert not lora.merged and not lora.left_out
        own = deltas[lora.role] = {}
        for target, delta in lora.deltas.items():
            dense = STRENGTHS[lora.role] * delta.dense().flatten(1).numpy()
            own.setdefault(target.key, []).append((delta.out_start, delta.out_stop, dense))
    assert set(deltas) == set(ROLES)
    return model, loaded, deltas


def with_dense(model, deltas, merge):
    """The model with one dense `diff` patch a weight, merged in float64."""
    weights, patches = model.model.state_dict(), {}
    for key in {key for own in deltas.values() for key in own}:
        total = np.zeros((weights[key].shape[0], weights[key][0].numel()))
        parts = [deltas[role].get(key, []) for role in ROLES]
        borders = sorted({b for own in parts for start, stop, _ in own for b in (start, stop)})
        for start, stop in zip(borders, borders[1:], strict=False):
            cut = [
                dense[start - lo : stop - lo] for own in parts for lo, hi, dense in own if lo <= start and stop <= hi
            ]
            whole = start == 0 and stop == len(total)
            name = key.removesuffix(".weight") + ("" if whole else f"[{start}:{stop}]")
            total[start:stop] = merge(name, *cut) if len(cut) == 2 else cut[0]
        patches[key] = ("diff", (torch.from_numpy(total).float().reshape(weights[key].shape),))
    model = model.clone()
    model.add_patches(patches, 1.0)
    return model


@pytest.mark.parametrize("name", STATIC)
def test_merged_model_is_the_dense_reference(setting, record_property, name):
    model, loaded, deltas = setting
    policy, merge = STATIC[name]
    merged = set_policy(loaded, policy)
    reference = tiny.sample(with_dense(model, deltas, merge))
    summed = tiny.sample(with_dense(model, deltas, lambda name, c, s: c + s))
    error = tiny.relative(tiny.sample(merged), reference)
    record_property(name, error)
    print(f"{name}: {error:.1e} of the range; it moves the sum's picture by {tiny.relative(summed, reference):.1e}")
    assert tiny.relative(summed, reference) > 1e-3
    assert error < 1e-4


@pytest.mark.parametrize("policy", [Sum(), *(policy for policy, _ in STATIC.values())], ids=["sum", *STATIC])
def test_static_policies_run_no_code_of_ours_and_leave_no_trace(setting, policy):
    """No wrapper, no swapped forward, no second model; after unpatching every weight is as it was."""
    model, loaded, _ = setting
    comfy.model_management.unload_all_models()
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    merged = set_policy(loaded, policy)
    assert not any(kind for wrappers in merged.wrappers.values() for kind in wrappers.values())
    assert not merged.additional_models and attachment_of(merged).live is None
    tiny.sample(merged)
    assert any("forward" in module.__dict__ for module in model.model.modules()) is False
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_switching_back_and_forth_leaves_no_trace(setting):
    """Whatever policies were set in between, a model is what its last policy makes of it; the clones stay apart."""
    model, loaded, _ = setting
    plain, live = tiny.sample(model), tiny.sample(set_policy(loaded, Paper()))
    ways = [TIES(), Paper(), Sum(), NPLoRA(), RECOMMENDED, DARE(), Sum(), Paper()]
    walked = loaded
    seen = []
    for policy in ways:
        walked = set_policy(walked, policy)
        seen.append((policy, walked, tiny.sample(walked)))
    assert torch.equal(seen[-1][2], live) and torch.equal(seen[1][2], live)
    assert torch.equal(seen[2][2], seen[6][2])
    assert walked.patches.keys() == set_policy(loaded, Paper()).patches.keys() and len(walked.additional_models) == 1
    for policy, made, picture in seen:
        assert torch.equal(tiny.sample(set_policy(loaded, policy)), picture)
        assert torch.equal(tiny.sample(made), picture), "a clone is not changed by what is made of it"
    assert torch.equal(tiny.sample(model), plain)


def test_a_layer_that_cannot_be_merged_keeps_cores_sum_and_is_named(tmp_path, caplog):
    """A DoRA is no delta of its own where the base weight cannot be read, as in some quantised files."""
    model = tiny.tiny_unet()
    key = next(k for k, shape in tiny.layer_shapes(model).items() if "attn1.to_q" in k)
    out, width = tiny.layer_shapes(model)[key]
    prefix, paths = key.removesuffix(".weight"), []
    torch.manual_seed(0)
    for role in ROLES:
        paths.append(tmp_path / f"{role}.safetensors")
        tensors = {
            f"{prefix}.lora_up.weight": torch.randn(out, 4) * 0.5,
            f"{prefix}.lora_down.weight": torch.randn(4, width) * 0.5,
            f"{prefix}.dora_scale": torch.rand(out, 1) + 0.5,
        }
        save_file(tensors, paths[-1])
    loaded = fused(model, *((path, 0.7) for path in paths))
    stacked = tiny.sample(tiny.core_stacked(model, *((path, 0.7) for path in paths)))
    assert tiny.relative(tiny.sample(set_policy(loaded, TIES())), stacked) > 1e-4
    (layer,) = attachment_of(loaded).spec.layers
    layer.read_weight = None
    unread = set_policy(loaded, TIES())
    assert "ties leaves a layer as the plain sum" in caplog.text and prefix in caplog.text
    assert {record.name for record in caplog.records if "plain sum" in record.message} == {"lora_conductor"}
    assert torch.equal(tiny.sample(unread), stacked)
