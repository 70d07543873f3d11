"""LoRAs counted more often by CFG, against core: two merged models, one for each prompt, combined by hand."""

import comfy.sample
import comfy.samplers
import pytest
import torch

from lora_conductor.fusion.policies import RECOMMENDED, Composite, KLSoft, Sum
from lora_conductor.fusion.routing.refinement import Refinement
from lora_conductor.host.fusing import fused
from lora_conductor.host.fusing.attach import attachment_of, set_policy
from lora_conductor.host.fusing.plans import replaying
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent

from .. import tiny
from ..parts import patches_by_part
from .test_fusion_invariance import assert_untouched, snapshot

CFG = 4.0


@pytest.fixture(scope="module", params=[tiny.tiny_flux, tiny.tiny_unet], ids=["flux", "unet"])
def setting(request, tmp_path_factory):
    model, folder = request.param(), tmp_path_factory.mktemp("loras")
    shapes = tiny.layer_shapes(model)
    alone = [key for key in shapes if "1" in key]  # layers that only the style has
    subject = {key: shape for key, shape in shapes.items() if key not in alone[:3]}
    files = [tiny.make_lora(folder / f"{i}.safetensors", s, seed=i, size=0.2) for i, s in enumerate((subject, shapes))]
    return model, files, fused(model, (files[0], 0.8), (files[1], 0.8))


def by_hand(positive, negative, **kw):
    """One step to the end: what CFG makes of two models' predictions, one for each prompt."""
    first = tiny.sample(positive, cfg=1.0, **kw)
    second = tiny.sample(negative, cfg=1.0, **kw | {"positive": tiny.conditioning(negative, 2)})
    return second + CFG * (first - second)


@pytest.mark.parametrize(
    ("emphasis", "share", "times"),
    [(1.0, 1.0, 1.0), (1.75, 0.625, 14 / 17), (2.5, 0.0, 0.625), (4.0, 0.0, 1.0), (6.0, 0.0, 1.5), (0.4, 1.2, 1.0)],
)
def test_sum_equals_two_merged_models(setting, emphasis, share, times, record_property):
    model, files, loaded = setting
    strengths = [(file, 0.8 * times) for file in files]
    wanted = by_hand(
        tiny.core_stacked(model, *strengths), tiny.core_stacked(model, *((f, s * share) for f, s in strengths)), batch=2
    )
    tiny.sample(model)
    before = snapshot(model)
    made = tiny.sample(set_policy(loaded, Sum(), Refinement(emphasis=emphasis)), cfg=CFG, batch=2)
    error = tiny.relative(made, wanted)
    record_property(f"emphasis {emphasis}", error)
    assert error < 1e-5
    tiny.sample(model)  # core takes the merged models' patches off
    assert_untouched(model, before)


@pytest.mark.parametrize("emphasis", [0.0, 2.0, CFG + 1])
@pytest.mark.parametrize("policy", [Sum(), RECOMMENDED, KLSoft(), Composite()], ids=lambda p: p.name)
def test_prompts_computed_apart_give_the_same(setting, policy, emphasis, monkeypatch):
    """Core computes the prompts one after the other when memory is short."""
    model = set_policy(setting[2], policy, Refinement(emphasis=emphasis))
    together = tiny.sample(model, steps=3, cfg=CFG)
    monkeypatch.setattr(model.model, "memory_required", lambda *a, **k: 1e30)
    assert tiny.relative(tiny.sample(model, steps=3, cfg=CFG), together) < 1e-4


def test_perp_neg_starts_from_the_empty_prompt_with_its_share(setting):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    model, files, loaded = setting
    strengths = [(file, 0.8 * 14 / 17) for file in files]
    wanted = by_hand(
        tiny.core_stacked(model, *strengths), tiny.core_stacked(model, *((file, s * 0.625) for file, s in strengths))
    )
    guider = Guider_PerpNeg(set_policy(loaded, Sum(), Refinement(emphasis=1.75)))
    guider.set_conds(tiny.conditioning(model, 1), tiny.conditioning(model, 3), tiny.conditioning(model, 2))
    guider.set_cfg(CFG, 0.0)
    sampling = model.get_model_object("model_sampling")
    noise = comfy.sample.prepare_noise(tiny.latent(model), 0)
    with torch.inference_mode():
        made = guider.sample(
            noise,
            tiny.latent(model),
            comfy.samplers.sampler_object("euler"),
            comfy.samplers.calculate_sigmas(sampling, "simple", 1),
            seed=0,
        )
    assert tiny.relative(made.to(wanted), wanted) < 1e-5


@pytest.mark.parametrize("policy", [Sum(), RECOMMENDED], ids=lambda p: p.name)
@pytest.mark.parametrize("frozen", [0, 1])
def test_without_cfg_it_is_both_strengths_turned_up(setting, policy, frozen):
    model, files, loaded = setting
    before = snapshot(model)
    for times in (0.5, 1.5):
        settings = {"freeze_after": frozen}
        turned = set_policy(fused(model, *((file, 0.8 * times) for file in files)), policy, Refinement(**settings))
        pushed = set_policy(loaded, policy, Refinement(emphasis=times, **settings))
        found, wanted = (tiny.sample(each, steps=3, cfg=1.0) for each in (pushed, turned))
        assert tiny.relative(found, wanted) < 1e-5
        assert tiny.relative(tiny.sample(set_policy(loaded, policy), steps=3, cfg=1.0), wanted) > 1e-2
        again = replaying(loaded, plan_of_latent(pushed, found)) if policy is RECOMMENDED else pushed
        assert torch.equal(tiny.sample(again, steps=3, cfg=1.0), found)
    tiny.sample(model)  # core takes the merged models' patches off
    assert_untouched(model, before)


@pytest.mark.parametrize("policy", [KLSoft(), Composite()], ids=lambda p: p.name)
def test_any_policy_is_pushed(setting, policy):
    """What one step adds is that many times as much, as near as the model is linear in it."""
    model, _, loaded = setting
    faint = tiny.sample(model)
    once, twice = (
        tiny.sample(set_policy(loaded, policy, Refinement(emphasis=often)), cfg=1.0) - faint for often in (1e-3, 2e-3)
    )
    assert tiny.relative(once * 2, twice) < 0.02


@pytest.mark.parametrize("emphasis", [0.0, CFG + 1])
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_pushed_in_two_samplers_is_pushed_in_one(setting, cfg, emphasis):
    model = set_policy(setting[2], RECOMMENDED, Refinement(emphasis=emphasis))
    steps = {"steps": 4, "cfg": cfg}
    half = tiny.sample(model, last_step=2, **steps)
    rest = {"latent_image": half, "noise": torch.zeros_like(half), "disable_noise": True, "force_full_denoise": True}
    assert tiny.relative(tiny.sample(model, start_step=2, **rest, **steps), tiny.sample(model, **steps)) < 1e-4


def test_no_policy_pushes_of_its_own_without_cfg(setting):
    own, once = (
        tiny.sample(set_policy(setting[2], RECOMMENDED, Refinement(emphasis=often)), steps=2, cfg=1.0)
        for often in (0.0, 1.0)
    )
    # At emphasis 1 layers of one role alone are weight patches.
    assert tiny.relative(own, once) < 1e-5


def test_one_lora_alone_is_core_s_unless_told_otherwise(setting):
    model, files, _ = setting
    alone = fused(model, (files[0], 0.8))
    merged = tiny.core_stacked(model, (files[0], 0.8))
    assert tiny.relative(tiny.sample(alone, cfg=CFG), tiny.sample(merged, cfg=CFG)) < 1e-5
    twice = set_policy(alone, RECOMMENDED, Refinement(emphasis=CFG))
    assert tiny.relative(tiny.sample(twice, cfg=CFG), by_hand(merged, model)) < 1e-5


@pytest.mark.parametrize("cfg", [CFG, 12.0])
def test_the_policys_own_emphasis_is_used_unless_told_otherwise(setting, cfg):
    def run(**settings):
        return tiny.sample(set_policy(setting[2], RECOMMENDED, Refinement(**settings)), steps=2, cfg=cfg)

    assert torch.equal(run(), run(emphasis=RECOMMENDED.own_emphasis))
    assert not torch.equal(run(), run(emphasis=1.0))


def test_a_record_has_what_the_policy_decided(setting):
    """The share of the negative prompt is not the routing's."""
    model = set_policy(setting[2], KLSoft(), Refinement(emphasis=4.0))
    record = record_of_latent(model, tiny.sample(model, steps=2, cfg=CFG))
    torch.testing.assert_close(record.weights.sum(0), torch.ones(len(record.layers), 2, dtype=torch.float64))


@pytest.mark.parametrize("policy", [RECOMMENDED, KLSoft()], ids=lambda p: p.name)
def test_the_rest_of_a_frozen_run_keeps_the_prompts_apart(setting, policy, record_property):
    model, _, loaded = setting
    tiny.sample(model)
    before = snapshot(model)
    routed = set_policy(loaded, policy, Refinement(emphasis=1.75, freeze_after=2))
    states: list[torch.Tensor] = []
    made = tiny.sample(routed, steps=3, cfg=CFG, callback=lambda step, x0, x, total: states.append(x.clone()))
    record = record_of_latent(routed, made)
    assert record.scores[:, :, 2].isnan().all()
    merged = []
    for share in (14 / 17, 14 / 17 * 0.625):
        merged.append(model.clone())
        index = {name: i for i, name in enumerate(record.layers)}
        for role, lora in enumerate(attachment_of(loaded).spec.loras):
            for target, patch in lora.core_patches.items():
                for key, part, name in patches_by_part(target, patch, index):
                    weight = float(record.weights[role, index[name], 2]) if name in index else 1.0
                    merged[-1].add_patches({key: part}, lora.strength * weight * share)
    wanted = by_hand(*merged, **_last_step(model, states[2]))
    error = tiny.relative(made, wanted)
    record_property(f"frozen {policy.name}", error)
    assert error < 1e-5
    tiny.sample(model)  # core takes the merged models' patches off
    assert_untouched(model, before)
    again = replaying(loaded, plan_of_latent(routed, made))
    assert torch.equal(tiny.sample(again, steps=3, cfg=CFG), made)


def _last_step(model, x):
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 3)[2:]
    # The sampler begins by scaling noise and latent: chosen so that it gives back the state.
    noise = x / sampling.noise_scaling(sigmas[0], torch.ones_like(x), torch.zeros_like(x))
    return {"noise": noise, "sigmas": sigmas}
