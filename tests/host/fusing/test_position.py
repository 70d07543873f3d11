"""Where in a run a decision is made follows the noise level: any way to cut a run up gives the one run's picture."""

import comfy.sample
import comfy.samplers
import pytest
import torch

from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, KLSoft
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.core import schedule_of
from lora_conductor.host.fusing import fused, live
from lora_conductor.host.fusing.attach import set_policy
from lora_conductor.host.fusing.plans import replaying
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent

from .. import tiny

STEPS = 8
MODELS = {"flux": tiny.tiny_flux, "unet": tiny.tiny_unet}
# Switch counts steps by its paper's rule, and SSR-Merge is calibrated in a run of its own.
ALIKE = {name: make for name, make in POLICIES.items() if name not in ("switch", "ssr_merge")}
SETTINGS = {
    "window": Refinement(start=0.25, end=0.75),
    "time_lead": Refinement(time_lead=2.0),
    "head": Refinement(granularity="head"),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def loaded(request, tmp_path_factory):
    model, folder = request.param(), tmp_path_factory.mktemp("loras")
    shapes = tiny.layer_shapes(model)
    return fused(model, *(tiny.make_lora(folder / f"{i}.safetensors", shapes, seed=i, size=0.2) for i in range(2)))


def once(model, **kw):
    return tiny.sample(model, steps=STEPS, cfg=4.0, **kw)


def in_parts(model, *ends, **kw):
    """As KSampler (Advanced) does it: the first adds the noise, all but the last leave some."""
    latent = None
    for start, end in zip((0, *ends), (*ends, STEPS), strict=True):
        more = {} if latent is None else {"latent_image": latent, "noise": torch.zeros_like(latent)}
        latent = tiny.sample(
            model,
            steps=STEPS,
            cfg=4.0,
            start_step=start,
            last_step=end,
            disable_noise=latent is not None,
            force_full_denoise=end == STEPS,
            **more,
            **kw,
        )
    return latent


@tiny.in_turn("loaded", MODELS, "policy", ALIKE)
def test_two_samplers_are_one(loaded, policy):
    model = set_policy(loaded, ALIKE[policy]())
    assert tiny.relative(in_parts(model, 3), once(model)) < 1e-4


def test_by_the_count_of_steps_they_would_not_be(loaded, monkeypatch):
    monkeypatch.setattr(live, "schedule_of", lambda sampling: None)
    model = set_policy(loaded, RECOMMENDED)
    assert tiny.relative(in_parts(model, 3), once(model)) > 1e-3


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("policy", [RECOMMENDED, KLSoft()], ids=["recommended", "kl_soft"])
def test_so_are_eight_under_settings_of_time(loaded, policy, setting):
    model = set_policy(loaded, policy, SETTINGS[setting])
    whole = once(model)
    assert tiny.relative(in_parts(model, *range(1, STEPS)), whole) < 1e-4
    assert tiny.relative(once(set_policy(loaded, policy)), whole) > 1e-3


@pytest.mark.parametrize("scheduler", ["karras", "sgm_uniform"])
def test_on_every_schedule(loaded, scheduler):
    model = set_policy(loaded, RECOMMENDED)
    assert tiny.relative(in_parts(model, 5, scheduler=scheduler), once(model, scheduler=scheduler)) < 1e-4


def test_parts_replay_a_whole_run_s_plan(loaded):
    model = set_policy(loaded, RECOMMENDED)
    whole = once(model)
    again = replaying(loaded, plan_of_latent(model, whole))
    assert tiny.relative(in_parts(again, 3), whole) < 1e-5


def silent_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that never calls back, as some packs' are."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i].expand(len(x)), **(extra_args or {}))
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def silent(model):
    empty = tiny.latent(model, 1)
    noise = comfy.sample.prepare_noise(empty, 0)
    sampler = comfy.samplers.KSAMPLER(silent_euler)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    conds = tiny.conditioning(model, 1), tiny.conditioning(model, 2)
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, noise, 4.0, sampler, sigmas, *conds, empty, disable_pbar=True)


@pytest.mark.parametrize("setting", [Refinement(), *SETTINGS.values()], ids=["plain", *SETTINGS])
def test_a_sampler_that_never_calls_back(loaded, setting):
    model = set_policy(loaded, RECOMMENDED, setting)
    made = silent(model)
    assert tiny.relative(made, once(model)) < 1e-4
    assert not record_of_latent(model, made).weights[:, :, 1:].isnan().all()


def test_half_noised_pictures_begin_half_way(loaded):
    """img2img at denoise .5: the steps are those that a whole run has there."""
    model = set_policy(loaded, RECOMMENDED)
    start = once(model)
    made = tiny.sample(model, steps=4, cfg=4.0, denoise=0.5, latent_image=start)
    whole = record_of_latent(model, start).subject_weight()
    record = record_of_latent(model, made)
    assert record.subject_weight() < whole - 0.05
    later = record_of_latent(model, once(model)).weights[:, :, STEPS // 2 :]
    share = later[0] / later.sum(0)
    assert abs(float(share.nanmean()) - record.subject_weight()) < 0.05


@pytest.mark.parametrize("make", [tiny.tiny_flux, tiny.tiny_unet], ids=["flux", "unet"])
def test_the_schedule_is_the_inverse_of_core_s(make):
    sampling = make().get_model_object("model_sampling")
    behind = schedule_of(sampling)
    for percent in (0.001, 0.03, 0.2501, 0.5, 0.77, 0.996):
        assert behind(float(sampling.percent_to_sigma(percent))) == pytest.approx(percent, abs=2e-4)
    assert behind(1e9) == 0.0 and behind(0.0) == 1.0 and behind(float(sampling.sigma_max)) == pytest.approx(0, abs=1e-3)


def test_a_sampling_that_core_does_not_know_has_none():
    assert schedule_of(object()) is None
