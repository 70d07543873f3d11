"""A run in parts, a stage or a step a call, is guided at the steps at which one run is, with the same picture."""

from __future__ import annotations

from collections import deque

import comfy.samplers
import nodes
import pytest
import torch

from lora_conductor.guidance.schedules import GuidanceWindow, step_of_sigma
from lora_conductor.host.guiding import GuidanceOptions, guide, guided_sampler
from lora_conductor.host.guiding.schedule import whole_schedule

from ..tiny import conditioning, relative, tiny_unet
from .guided import plan
from .test_around import sampled_by

WINDOW = GuidanceWindow(0.4, 0.8, 6)  # two of twenty steps, as the nodes ask by default


def stage(model, latent, first, last, steps, *, sampler="euler", scheduler="simple"):
    """KSamplerAdvanced, as users chain it: noise at the start only, what is left of it handed on."""
    with torch.inference_mode():
        return nodes.common_ksampler(
            model,
            5,
            steps,
            2.5,
            sampler,
            scheduler,
            conditioning(model, 1),
            conditioning(model, 2),
            latent,
            disable_noise=first > 0,
            start_step=first,
            last_step=last,
            force_full_denoise=last >= steps,
        )[0]


def in_parts(parts, bounds, steps=20, **how):
    """The picture, and which steps were guided in each part."""
    reports: deque = deque()
    model = guide(parts["model"], plan(parts, window=WINDOW, options=GuidanceOptions()), reports)
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    for first, last in zip(bounds, bounds[1:], strict=False):
        latent = stage(model, latent, first, last, steps, **how)
    return latent["samples"], [[e["step"] for e in report["evaluations"]] for report in reports]


@pytest.mark.parametrize(
    ("sampler", "scheduler", "bounds"),
    [
        ("euler", "simple", list(range(21))),
        ("euler", "karras", [0, 10, 20]),
        ("euler", "beta", [0, 3, 9, 20]),
        ("dpm_2", "simple", [0, 8, 9, 14, 20]),
    ],
)
def test_parts_guide_the_steps_of_the_whole(parts, sampler, scheduler, bounds, record_property):
    how = {"sampler": sampler, "scheduler": scheduler}
    expected, whole = in_parts(parts, [0, 20], **how)
    picture, guided = in_parts(parts, bounds, **how)
    twice = 2 if sampler == "dpm_2" else 1  # it asks the model twice a step
    assert sorted(step for steps in guided for step in steps) == sorted([8, 14] * twice)
    assert sum(guided, []) == whole[0]
    error = relative(picture, expected)
    record_property("of the range", error)
    assert error < 1e-3


def test_a_sampler_that_calls_one_step_at_a_time_is_guided_as_in_one(parts):
    def by_steps(inner):
        def function(model, x, sigmas, *, extra_args=None, callback=None, disable=None):
            for step in range(len(sigmas) - 1):
                two = sigmas[step : step + 2]
                x = inner.sampler_function(model, x, two, extra_args=extra_args, callback=None, disable=True)
            return x

        return comfy.samplers.KSAMPLER(function)

    ours = guided_sampler(comfy.samplers.sampler_object("euler"), plan(parts, window=WINDOW, options=GuidanceOptions()))
    expected = sampled_by(ours, parts["model"], steps=20)
    assert relative(sampled_by(comfy.samplers.sampler_object("euler"), parts["model"], steps=20), expected) > 1e-3
    assert relative(sampled_by(by_steps(ours), parts["model"], steps=20), expected) < 1e-5


@pytest.mark.parametrize("kind", ["flux", "unet"])
def test_every_schedule_of_cores_is_guided_step_by_step_as_in_one(parts, kind):
    sampling, euler = sampling_of(kind, parts), comfy.samplers.sampler_object("euler")
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, 20).tolist()
        guided = []
        for step in (7, 8, 9, 13, 14, 15):
            whole = whole_schedule(sigmas[step : step + 2], sampling, euler, torch.zeros(1))
            if WINDOW.is_active(step_of_sigma(sigmas[step], whole), len(whole) - 1):
                guided.append(step)
        assert guided == [8, 14], scheduler


def sampling_of(kind, parts):
    return (parts["model"] if kind == "flux" else tiny_unet()).get_model_object("model_sampling")


@pytest.mark.parametrize("kind", ["flux", "unet"])
def test_a_run_of_its_own_keeps_its_schedule(parts, kind):
    sampling, euler = sampling_of(kind, parts), comfy.samplers.sampler_object("euler")
    some = torch.ones(1, 4, 8, 8)
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        whole = comfy.samplers.calculate_sigmas(sampling, scheduler, 20).tolist()
        assert whole_schedule(whole, sampling, euler, some) == whole
        assert whole_schedule(whole[8:], sampling, euler, some) == whole[8:]  # image to image
        part = whole_schedule(whole[3:6], sampling, euler, some * 0)
        assert part[part.index(whole[3]) :][:3] == whole[3:6]
    assert whole_schedule([1.0, 2.0, 3.0], sampling, euler, some) == [1.0, 2.0, 3.0]  # backwards, into noise
    assert whole_schedule([0.5], sampling, euler, some) == [0.5]


@pytest.mark.parametrize("kind", ["flux", "unet"])
def test_of_an_unknown_schedule_the_noise_level_tells(parts, kind):
    """Steps even in percent of sampling, of a number that no schedule of core's has at these places."""
    sampling, euler = sampling_of(kind, parts), comfy.samplers.sampler_object("euler")
    percents = [0.013 + 0.047 * step for step in range(21)]
    sigmas = [sampling.percent_to_sigma(percent) for percent in percents]
    for step in range(19):
        found = whole_schedule(sigmas[step : step + 2], sampling, euler, torch.zeros(1))
        at = found.index(sigmas[step]) / (len(found) - 1)
        assert abs(len(found) - 1 - 1 / 0.047) < 1.5
        assert abs(at - percents[step]) < 0.03
        assert all(a > b for a, b in zip(found, found[1:], strict=False))
