"""LoRAs that act while sampling, in core's nodes that take weights: as its stacked loaders, or said to be otherwise."""

import gc
import logging
import weakref

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras.nodes_lora_extract import LoraSave
from comfy_extras.nodes_model_merging import (
    CheckpointSave,
    ModelAdd,
    ModelMergeBlocks,
    ModelMergeSimple,
    ModelSave,
    ModelSubtract,
)

from lora_conductor.fusion.policies import Paper, Sum
from lora_conductor.host.fusing import attachment_of, fused, set_policy
from lora_conductor.host.fusing.attach import add_loras
from lora_conductor.host.fusing.report import run_report
from lora_conductor.host.fusing.results import record_of_latent
from lora_conductor.host.loras import model_patches, read_lora

from .. import tiny


@pytest.fixture(scope="module", autouse=True)
def alone():
    tiny.forget_other_models()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Our live LoRAs on a model, core's on the same, and another model."""
    folder, model = tmp_path_factory.mktemp("loras"), tiny.tiny_flux()
    shapes = tiny.layer_shapes(model)
    files = [(tiny.make_lora(folder / f"{seed}.safetensors", shapes, seed=seed, size=0.2), 0.8) for seed in (1, 2)]
    other = tiny.tiny_flux()
    tiny.randomise(other.model.diffusion_model, 7)
    return fused(model, *files, Paper()), tiny.core_stacked(model, *files), other, model


def as_second(ours, other, node, **inputs):
    return node().merge(model1=other, model2=ours, **inputs)[0]


def as_first(ours, other, node, **inputs):
    return node().merge(model1=ours, model2=other, **inputs)[0]


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (ModelMergeSimple, {"ratio": 0.3}),
        (ModelMergeBlocks, {"input": 0.3, "middle": 0.6, "out": 0.1}),
        (ModelAdd, {}),
        (ModelSubtract, {"multiplier": 0.4}),
    ],
)
def test_as_the_second_model_of_a_merge_they_are_cores_loaders(models, node, inputs, caplog):
    ours, core, other, plain = models
    with caplog.at_level(logging.WARNING, "lora_conductor"):
        got = tiny.sample(as_second(ours, other, node, **inputs))
    assert "BakeFusedLoRA" in caplog.text
    expected = tiny.sample(as_second(core, other, node, **inputs))
    assert tiny.relative(got, expected) < 1e-5
    assert tiny.relative(tiny.sample(as_second(plain, other, node, **inputs)), expected) > 1e-3


@pytest.mark.parametrize("policy", [Paper(), Sum()])
def test_as_the_first_they_are_scaled_as_cores_loaders_and_it_is_said(models, caplog, policy):
    ours, core, other, _ = models
    with caplog.at_level(logging.WARNING, "lora_conductor"):
        merged = as_first(set_policy(ours, policy), other, ModelMergeSimple, ratio=0.3)
        assert not caplog.records
        got = tiny.sample(merged)
    assert tiny.relative(got, tiny.sample(as_first(core, other, ModelMergeSimple, ratio=0.3))) < 1e-5
    if policy == Paper():
        assert "scales the weights" in caplog.text
        assert "scales the weights" in run_report(merged, record_of_latent(merged, got), {}, None)


def test_what_is_scaled_before_the_loader_is_no_reason_to_warn(models, caplog):
    ours, _, other, plain = models
    merged = as_first(plain, other, ModelMergeSimple, ratio=0.3)
    spec = attachment_of(ours).spec
    routed = add_loras(merged, [(_patches(lora, merged), lora.role, lora.strength) for lora in spec.loras])
    with caplog.at_level(logging.WARNING, "lora_conductor"):
        tiny.sample(routed)
        assert not caplog.records
        tiny.sample(set_policy(as_first(routed, other, ModelMergeSimple, ratio=0.5), Paper()))
    assert "scales the weights" in caplog.text


def _patches(lora, model):
    return model_patches(read_lora(lora.name, lora.path), model)


def test_a_merge_that_scales_nothing_is_no_reason_to_warn(models, caplog):
    ours, _, other, _ = models
    with caplog.at_level(logging.WARNING, "lora_conductor"):
        tiny.sample(as_first(ours, other, ModelAdd))
    assert not caplog.records


def test_saved_weights_have_the_sum_and_the_model_is_as_it_was(models, tmp_path, caplog):
    ours, core, _, plain = models
    before = tiny.sample(ours)
    saved = {}
    for name, model in (("plain", plain), ("ours", ours), ("core", core)):
        node = ModelSave()
        node.output_dir = str(tmp_path)
        with caplog.at_level(logging.WARNING, "lora_conductor"):
            node.save(model, name)
        saved[name] = comfy.utils.load_torch_file(str(tmp_path / f"{name}_00001_.safetensors"))
    assert "BakeFusedLoRA" in caplog.text
    assert saved["ours"].keys() == saved["core"].keys()
    for key, weight in saved["core"].items():
        torch.testing.assert_close(saved["ours"][key], weight, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(saved["ours"][key], weight) for key, weight in saved["plain"].items())
    assert torch.equal(tiny.sample(ours), before)


class TextEncoder:
    """What core's CLIP is built of."""

    params: dict = {}
    clip = comfy.sd1_clip.SD1ClipModel
    tokenizer = comfy.sd1_clip.SD1Tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """What CheckpointSave writes of a UNet with a text encoder and a VAE: without LoRAs, with ours, with core's."""
    folder, model = tmp_path_factory.mktemp("checkpoints"), tiny.tiny_unet()
    shapes = tiny.layer_shapes(model)
    files = [(tiny.make_lora(folder / f"{seed}.safetensors", shapes, seed=seed, size=0.2), 0.8) for seed in (1, 2)]
    clip = comfy.sd.CLIP(TextEncoder(), parameters=1)
    tiny.randomise(clip.cond_stage_model)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(_vae_file())))
    models = {"plain": model, "ours": fused(model, *files, Paper()), "core": tiny.core_stacked(model, *files)}
    before, saved = tiny.sample(models["ours"]), {}
    for name, carries in models.items():
        node = CheckpointSave()
        node.output_dir = str(folder)
        node.save(carries, clip, vae, name)
        saved[name] = comfy.utils.load_torch_file(str(folder / f"{name}_00001_.safetensors"))
    assert torch.equal(tiny.sample(models["ours"]), before)
    return saved


def _vae_file():
    return folder_paths.get_full_path_or_raise("vae", "emoji_taef1_vae_fp16.safetensors")


def test_saved_checkpoints_have_the_sum_beside_text_encoder_and_vae(checkpoints):
    assert checkpoints["ours"].keys() == checkpoints["core"].keys()
    parts = {key.split(".")[0] for key in checkpoints["ours"]}
    assert {"model", "cond_stage_model", "first_stage_model"} <= parts
    for key, weight in checkpoints["core"].items():
        torch.testing.assert_close(checkpoints["ours"][key], weight, atol=1e-6, rtol=1e-5)
    changed = [key for key, weight in checkpoints["plain"].items() if not torch.equal(checkpoints["ours"][key], weight)]
    assert changed and all(key.startswith("model.") for key in changed)


@pytest.mark.parametrize(("lora_type", "share"), [("standard", 1.0), ("full_diff", 1.0), ("full_diff", 0.3)])
def test_an_extracted_lora_has_the_sum(models, lora_type, share, tmp_path, monkeypatch, caplog):
    """Ours minus the model without LoRAs: the difference is what core's loaders make; also of weights not loaded."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    told = tiny.partly_loaded(monkeypatch, share) if share < 1 else []
    ours, core, _, plain = models
    found = {}
    for name, model in (("ours", ours), ("core", core)):
        (difference,) = ModelSubtract().merge(model1=model, model2=plain, multiplier=1.0)
        with caplog.at_level(logging.WARNING, "lora_conductor"):
            LoraSave.execute(name, 8, lora_type, True, difference)
        assert ("BakeFusedLoRA" in caplog.text) == (name == "ours")
        caplog.clear()
        found[name] = comfy.utils.load_torch_file(str(tmp_path / f"{name}_00001_.safetensors"))
    monkeypatch.undo()
    comfy.model_management.unload_all_models()
    assert found["ours"].keys() == found["core"].keys() and all(lowvram for lowvram, _ in told)
    pictures = {
        name: tiny.sample(comfy.sd.load_lora_for_models(plain, None, tensors, 1.0, 0)[0])
        for name, tensors in found.items()
    }
    assert tiny.relative(pictures["ours"], pictures["core"]) < 1e-3
    assert tiny.relative(tiny.sample(plain), pictures["core"]) > 1e-2


def test_cores_hooks_may_ask_for_weights_while_we_act(models, caplog):
    ours, *_ = models
    with caplog.at_level(logging.WARNING, "lora_conductor"):
        found = ours.clone().get_key_patches()
    assert not caplog.records
    assert all(len(patches) == 1 for patches in found.values())


def test_a_clone_that_dies_in_an_errors_traceback_leaves_core_its_model(models):
    """With all that it was cloned from: core then goes on with what the model's loader keeps."""
    clone = set_policy(set_policy(models[0], Sum()), Paper())
    tiny.sample(clone)
    around = [clone]
    around.append(around)
    del clone, around
    gc.collect()
    assert not [loaded for loaded in comfy.model_management.current_loaded_models if loaded.is_dead()]


def test_clones_are_freed_at_once(models):
    clone = models[0].clone()
    found = weakref.ref(clone)
    gc.disable()
    try:
        del clone
        assert found() is None
    finally:
        gc.enable()
