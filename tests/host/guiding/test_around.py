"""Guidance among what others put around a run: samplers that wrap ours, caches, ControlNets, batches, odd schedules."""

from __future__ import annotations

import json

import comfy.sample
import comfy.samplers
import comfy_extras.nodes_easycache as easycache
import pytest
import torch

from lora_conductor.fusion.policies import KLSoft
from lora_conductor.fusion.routing import Refinement
from lora_conductor.guidance.schedules import GuidanceWindow
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import fused
from lora_conductor.host.guiding import GuidanceOptions, guided_model, guided_sampler, report_of_latent

from ..tiny import conditioning, latent, layer_shapes, make_lora, relative
from .guided import plan, run


def wrapped(sampler):
    """A sampler around another one, as packs that add detail make it: by its inner function."""

    def function(model, x, sigmas, *, extra_args=None, callback=None, disable=None, inner, **options):
        def closer(x, sigma, **kwargs):
            return model(x, sigma, **kwargs)

        for name in ("inner_model", "sigmas"):
            setattr(closer, name, getattr(model, name))
        return inner.sampler_function(
            closer, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **inner.extra_options
        )

    return comfy.samplers.KSAMPLER(function, extra_options={"inner": sampler})


def sampled_by(sampler, model, steps=6, seed=5):
    empty = latent(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(model, 1), conditioning(model, 2))
    guider.set_cfg(2.5)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = comfy.sample.prepare_noise(empty, seed)
    with torch.inference_mode():
        return guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=seed)


def test_a_sampler_around_ours_is_guided(parts):
    euler = comfy.samplers.sampler_object("euler")
    ours = guided_sampler(euler, plan(parts, options=GuidanceOptions()))
    expected = sampled_by(ours, parts["model"])
    assert relative(sampled_by(euler, parts["model"]), expected) > 1e-3
    assert torch.equal(sampled_by(wrapped(ours), parts["model"]), expected)


def test_ours_around_another_is_guided(parts):
    ours = guided_sampler(wrapped(comfy.samplers.sampler_object("euler")), plan(parts, options=GuidanceOptions()))
    plain = guided_sampler(comfy.samplers.sampler_object("euler"), plan(parts, options=GuidanceOptions()))
    assert torch.equal(sampled_by(ours, parts["model"]), sampled_by(plain, parts["model"]))


def test_a_sampler_that_hides_the_guider_is_an_error(parts):
    ours = guided_sampler(comfy.samplers.sampler_object("euler"), plan(parts))
    with pytest.raises(ConductorError, match="sampler: .* cannot be guided"):
        ours.sampler_function(lambda x, sigma: x, torch.zeros(1, 16, 8, 8), torch.tensor([1.0, 0.0]))


def test_a_cache_that_leaves_predictions_out_is_guided(parts):
    """Core's LazyCache wraps whole predictions; what it reuses is corrected like any other."""
    every = GuidanceWindow(0.0, 1.0, 1)
    cached = easycache.LazyCacheNode.execute(parts["model"], 10.0, 0.0, 1.0, False).args[0]
    _, scores = run(cached, plan(parts, window=every))
    _, plain = run(parts["model"], plan(parts, window=every))
    assert [e["step"] for e in scores["evaluations"]] == [e["step"] for e in plain["evaluations"]]


def test_time_travel_of_a_part_of_a_batch_is_that_part_of_the_whole(parts):
    """``batch_index``: the same pictures again, of a batch that was cut."""
    travelling = plan(parts, window=GuidanceWindow(0.0, 0.5, 1), options=GuidanceOptions(time_travel=1))
    whole, _ = run(parts["model"], travelling, batch=3)
    part, _ = run(parts["model"], travelling, samples=torch.zeros(1, 16, 8, 8), batch_index=[2])
    assert relative(part, whole[2:]) < 1e-3
    assert relative(part, whole[:1]) > 0.1


@pytest.mark.parametrize("shift", [1.0, 30.0, 3000.0])
def test_a_large_shift_neither_doubles_nor_loses_guided_steps(parts, shift):
    model = parts["model"].clone()
    sampling = type(model.get_model_object("model_sampling"))(model.model.model_config)
    sampling.set_parameters(shift=shift)
    model.add_object_patch("model_sampling", sampling)
    _, scores = run(model, plan(parts, window=GuidanceWindow(0.0, 1.0, 1)))
    assert [e["step"] for e in scores["evaluations"]] == list(range(scores["steps"]))


def test_every_run_of_a_model_has_its_own_report(parts):
    model = guided_model(parts["model"], plan(parts))
    first, second = (run(model, steps=steps)[0] for steps in (4, 6))
    assert json.loads(report_of_latent(model, first))["steps"] == 4
    assert json.loads(report_of_latent(model, second.half()))["steps"] == 6
    unknown = json.loads(report_of_latent(model, first + 1))
    assert not unknown["guided"] and "no guided run" in unknown["note"]
    assert not json.loads(report_of_latent(parts["model"], first))["guided"]


def test_freezing_under_the_papers_mode_keeps_the_loras(parts, tmp_path):
    """Decisions become weight patches between two steps, not while a network that is differentiated has stand-ins."""
    model, shapes = parts["model"], layer_shapes(parts["model"])
    files = [make_lora(tmp_path / f"{i}.safetensors", shapes, seed=i, size=0.3) for i in (1, 2)]
    routed = fused(model, *files, KLSoft(), Refinement(freeze_after=2, emphasis=1.0))
    frozen, _ = run(routed)
    barely, _ = run(routed, plan(parts, options=GuidanceOptions(mode="paper", paper_step=1e-9)))
    assert relative(barely, frozen) < 1e-5  # the one from the files' factors, the other from the same in another basis
    assert relative(run(model)[0], frozen) > 0.1
