"""SSR-Merge on the small world: calibrated through the host, merged by core, against a dense reference."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.emoji.world.small_world import SmallWorld
from lora_conductor.fusion.policies import Paper, SSRMerge
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import attachment_of, fused, set_policy
from lora_conductor.host.fusing.calibration import calibrated

from ...fusion.dense_policies import ssr_merge
from .. import tiny

ROLES = ("subject", "style")
STRENGTHS = {"subject": 1.0, "style": 1.3}


@pytest.fixture(scope="module")
def small():
    return SmallWorld()


@pytest.fixture(scope="module")
def paths(small):
    return {"subject": small.lora("subject", "fox"), "style": small.lora("style", "openmoji")}


@pytest.fixture(scope="module")
def prompts(small):
    """A prompt for each LoRA alone: the subject in no style, the style without the subject."""
    return {"subject": small.prompt("fox", None), "style": small.style_prompt("openmoji")}


@pytest.fixture(scope="module")
def loaded(small, paths):
    return fused(small.model, **{role: (path, STRENGTHS[role]) for role, path in paths.items()})


@pytest.fixture(scope="module")
def policy(loaded, prompts):
    return calibrated(loaded, prompts, tiny.latent(loaded), seed=5)


def one_step(model, prompt, seed=5):
    return tiny.sample(model, positive=prompt, negative=prompt, seed=seed)


def inputs_of(model, prompt, names):
    """Inputs of the layers in a one-step sampling, [in, tokens] float64."""
    seen, handles = {}, []
    for name in names:
        module = model.model.get_submodule(f"diffusion_model.{name}")
        handles.append(module.register_forward_pre_hook(lambda m, x, name=name: seen.__setitem__(name, x[0])))
    one_step(model, prompt)
    for handle in handles:
        handle.remove()
    return {name: x.reshape(-1, x.shape[-1]).double().numpy().T for name, x in seen.items()}


def test_merged_model_is_the_dense_reference(small, paths, prompts, loaded, policy, record_property):
    """Activations of core's own loader with one LoRA each, ridge regression by least squares, one `diff` a weight."""
    names = {
        name.replace(".", "_"): name
        for name, module in small.model.model.diffusion_model.named_modules()
        if hasattr(module, "in_features")
    }
    files = {role: load_file(path) for role, path in paths.items()}
    patched = {names[key.split(".")[0].removeprefix("lora_unet_")]: key.split(".")[0] for key in files["subject"]}
    inputs = {
        role: inputs_of(tiny.core_stacked(small.model, (paths[role], STRENGTHS[role])), prompts[role], patched)
        for role in ROLES
    }
    patches = {}
    for name, prefix in patched.items():
        factors = []
        for role in ROLES:
            up, down, alpha = (files[role][f"{prefix}.{part}"].double() for part in PARTS)
            factors.append(((STRENGTHS[role] * alpha / len(down) * up).numpy(), down.numpy()))
        merged = ssr_merge(factors, [inputs[role][name] for role in ROLES], 1e-4)
        patches[f"diffusion_model.{name}.weight"] = ("diff", (torch.from_numpy(merged).float(),))
    reference = small.model.clone()
    reference.add_patches(patches, 1.0)
    prompt = small.prompt("fox", "openmoji")
    expected = one_step(reference, prompt)
    summed = one_step(tiny.core_stacked(small.model, *((paths[r], STRENGTHS[r]) for r in ROLES)), prompt)
    merged = set_policy(loaded, policy)
    error = tiny.relative(one_step(merged, prompt), expected)
    record_property("ssr_merge", error)
    print(f"{error:.1e} of the range; it moves the sum's picture by {tiny.relative(summed, expected):.1e}")
    assert len(patches) == 36 and tiny.relative(summed, expected) > 1e-3
    assert error < 1e-3
    assert attachment_of(merged).live is None and not merged.additional_models


PARTS = ("lora_up.weight", "lora_down.weight", "alpha")


def test_on_its_own_prompt_each_lora_is_nearer_to_being_alone(small, paths, prompts, loaded, policy):
    """What the merge is for: against the plain sum, the other LoRA disturbs less."""
    merged = set_policy(loaded, policy)
    summed = tiny.core_stacked(small.model, *((paths[r], STRENGTHS[r]) for r in ROLES))
    for role in ROLES:
        alone = one_step(tiny.core_stacked(small.model, (paths[role], STRENGTHS[role])), prompts[role])
        ours, theirs = (tiny.relative(one_step(m, prompts[role]), alone) for m in (merged, summed))
        print(f"{role}: merged {ours:.3f} of the range away from the LoRA alone, sum {theirs:.3f}")
        assert ours < 0.7 * theirs


def test_calibration_is_repeatable_and_leaves_no_trace(small, prompts, loaded, policy):
    plain, live = tiny.sample(small.model), tiny.sample(set_policy(loaded, Paper()))
    again = calibrated(loaded, prompts, tiny.latent(loaded), seed=5)
    assert again.settings() == policy.settings()
    assert calibrated(loaded, prompts, tiny.latent(loaded), seed=6).settings() != policy.settings()
    assert torch.equal(tiny.sample(small.model), plain)
    assert torch.equal(tiny.sample(set_policy(loaded, Paper())), live)
    assert not any(module._forward_pre_hooks for module in small.model.model.modules())


def test_what_is_missing_is_said(small, paths, prompts, loaded, policy):
    with pytest.raises(ConductorError, match="calibrated.*subject_prompt"):
        set_policy(loaded, SSRMerge())
    with pytest.raises(ConductorError, match="after the LoRA loaders"):
        calibrated(small.model, prompts, tiny.latent(loaded))
    with pytest.raises(ConductorError, match="other LoRAs"):
        fused(set_policy(loaded, policy), style=(paths["style"], STRENGTHS["style"]))
