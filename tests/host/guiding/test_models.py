"""Guidance on every kind of model and use: eps, v, edm and flow, ControlNet, a second pass, time travel, the guard."""

import math

import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import nodes
import pytest
import torch
from comfy.cldm.cldm import ControlNet

from lora_conductor.guidance.encoders import TowerEncoder
from lora_conductor.guidance.preprocess import Preprocess
from lora_conductor.guidance.schedules import GuidanceWindow
from lora_conductor.host.core import SAMPLER_NAMES
from lora_conductor.host.guiding import GuidanceOptions, guide
from lora_conductor.host.guiding.denoiser import names_of, renoised
from lora_conductor.host.vision import MetricEncoder
from lora_conductor.host.vision.vae import LatentDecoder

from ..tiny import conditioning, randomise, relative, tiny_unet, world_flux
from .guided import assert_unchanged, fingerprint, plan, run

ETA = 0.2
# The first 56 bits of the SHA-256 of "5:3:1:0" and "5:3:1:1".
SEEDS = (66152544124094178, 36292000092366609)


def model_of(kind: str):
    """A tiny model that predicts noise, velocity, EDM's mixture or flow."""
    if kind == "flow":
        return world_flux()
    model = tiny_unet(thin=False)
    model_type = {"eps": "EPS", "v": "V_PREDICTION", "edm": "EDM"}[kind]
    config = model.model.model_config
    model.model.model_sampling = comfy.model_base.model_sampling(config, comfy.model_base.ModelType[model_type])
    return model


def sampled(model, guidance=None, *, steps=1, sampler="euler", positive=None, latent=None, denoise=1.0, cfg=2.5):
    reports = []
    latent = latent or {"samples": torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)}
    with torch.inference_mode():
        guided = model if guidance is None else guide(model, guidance, reports)
        conds = positive or conditioning(model, 1), conditioning(model, 2)
        (out,) = nodes.common_ksampler(guided, 5, steps, cfg, sampler, "normal", *conds, latent, denoise=denoise)
    return out["samples"], reports[0] if reports else None


def crude(parts, **options):
    """Guidance at every step with RGB factors in place of a VAE, so that any latent format will do."""
    settings = {"guidance_strength": ETA, "window": GuidanceWindow(0.0, 1.0, 1), "vae": None}
    settings |= {key: options.pop(key) for key in ("held_out_encoder", "guidance_strength", "window") if key in options}
    return plan(parts, **settings, options=GuidanceOptions(**{"decoder": "latent RGB", **options}))


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
def test_one_step_moves_the_picture_by_exactly_the_displacement(parts, kind):
    model = model_of(kind)
    plain, _ = sampled(model)
    guided, report = sampled(model, crude(parts))
    latent_format = model.model.latent_format
    moved = latent_format.process_in(guided) - latent_format.process_in(plain)
    size = latent_format.process_in(plain).square().mean().sqrt()
    assert float(moved.square().mean().sqrt()) == pytest.approx(ETA * float(size), rel=1e-3)
    assert report["evaluations"][0]["displacement_rms"][0] == pytest.approx(ETA * float(size), rel=1e-3)


@pytest.mark.parametrize("mode", ["x0", "paper"])
@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
def test_every_kind_of_model_is_guided(parts, kind, mode, record_property):
    model = model_of(kind)
    before = fingerprint(model)
    guidance = crude(parts, mode=mode, paper_step=30.0, final_scores=True)
    weak = crude(parts, mode=mode, paper_step=1e-7, final_scores=True, guidance_strength=1e-7)
    (_, plain), (_, guided) = sampled(model, weak, steps=4), sampled(model, guidance, steps=4)
    totals = [sum(t["weight"] * r["final"][t["name"]][0] for t in r["terms"]) for r in (plain, guided)]
    record_property(f"{kind}, {mode}: rise of the weighted similarity", totals[1] - totals[0])
    assert totals[1] > totals[0]
    assert_unchanged(before, model)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler_of_core_is_guided(parts, sampler):
    plain, _ = sampled(parts["model"], steps=3, sampler=sampler)
    guided, report = sampled(parts["model"], crude(parts), steps=3, sampler=sampler)
    assert report["skipped"] == 0 and report["evaluations"]
    assert torch.isfinite(guided).all() and not torch.equal(guided, plain)


@pytest.mark.parametrize("mode", ["x0", "paper"])
def test_with_a_controlnet(parts, mode):
    model = tiny_unet()
    config = dict(model.model.model_config.unet_config)
    config.pop("out_channels"), config.pop("transformer_depth_output")
    network = ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast, device="cpu")
    randomise(network, 4)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), manual_cast_dtype=None)
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ((context, extra),) = conditioning(model, 1)
    positive = [
        [context, {**extra, "control": control.set_cond_hint(hint, 1.0, (0.0, 1.0)), "control_apply_to_uncond": True}]
    ]
    controlled, _ = sampled(model, positive=positive, steps=2)
    assert not torch.allclose(controlled, sampled(model, steps=2)[0])
    guided, report = sampled(model, crude(parts, mode=mode), positive=positive, steps=2)
    assert report["skipped"] == 0 and torch.isfinite(guided).all() and not torch.equal(guided, controlled)


def test_a_second_pass_at_a_higher_resolution(parts):
    model = parts["model"]
    first, _ = run(model, plan(parts), steps=4)
    larger = {"samples": torch.nn.functional.interpolate(first, size=(12, 14), mode="bilinear")}
    second, report = sampled(model, plan(parts), steps=4, latent=larger, denoise=0.5)
    assert second.shape[-2:] == (12, 14)
    assert report["skipped"] == 0 and report["evaluations"]
    assert not torch.equal(second, sampled(model, steps=4, latent=larger, denoise=0.5)[0])


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_time_travel_ends_where_a_step_from_the_renoised_latent_ends(parts, kind):
    """With a correction too small to matter: one step, noised anew, the step again, by hand through core's model."""
    model = model_of(kind)
    steps = 3
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    guidance = crude(parts, time_travel=1, guidance_strength=1e-9, window=GuidanceWindow(0.0, 0.3, 1))
    got, _ = sampled(model, guidance, steps=steps, cfg=1.0)
    base = model.model
    ((context, extra),) = conditioning(model, 1)
    arguments = {"y": extra["pooled_output"]} if kind == "flow" else {}

    def denoise(x, sigma):
        return base.apply_model(x, sigma[None], c_crossattn=context, transformer_options={}, **arguments)

    with torch.inference_mode():
        shape = (1, base.latent_format.latent_channels, 8, 8)
        noise = comfy.sample.prepare_noise(torch.zeros(shape), 5)
        x = base.model_sampling.noise_scaling(
            sigmas[0], noise, torch.zeros(shape), abs(float(sigmas[0]) - float(base.model_sampling.sigma_max)) < 1e-3
        )
        x = renoised(base, x, denoise(x, sigmas[0]), float(sigmas[0]), float(sigmas[1]), (5, 0, 0), names_of(noise))
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            x = x + (x - denoise(x, sigma)) / sigma * (following - sigma)
    expected = base.latent_format.process_out(x)
    assert relative(got, expected) < 1e-3
    assert relative(sampled(model, steps=steps, cfg=1.0)[0], expected) > 0.01


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_renoising_gives_the_noise_level_back(kind):
    model = model_of(kind).model
    generator = torch.Generator().manual_seed(0)
    sigma, following = (3.0, 1.5) if kind == "eps" else (0.8, 0.5)
    x0, noise = (torch.randn(2, 4, 64, 64, generator=generator) for _ in range(2))
    x = x0 + sigma * noise if kind == "eps" else (1 - sigma) * x0 + sigma * noise
    again = renoised(model, x, x0, sigma, following, (1, 2, 3), "ab")
    left = again - (x0 if kind == "eps" else (1 - sigma) * x0)
    assert float(left.std()) == pytest.approx(sigma, rel=0.02)
    correlation = float((left * noise).mean()) / sigma
    part = following if kind == "eps" else following * (1 - sigma) / (1 - following)
    assert correlation == pytest.approx(part / sigma, abs=0.02)
    assert torch.equal(again[:1], renoised(model, x[:1], x0[:1], sigma, following, (1, 2, 3), "a"))


def test_noise_of_time_travel_is_the_same_everywhere():
    """Of any interpreter and process: its seeds come from a digest, not from `hash`."""
    model = model_of("eps").model
    nothing = torch.zeros(2, 4, 8, 8)
    noise = renoised(model, nothing, nothing, 1.0, 0.0, (5, 3, 1), ["0", "1"])
    for index, seed in enumerate(SEEDS):
        expected = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(noise[index], expected)


class TurningAway(torch.nn.Module):
    """An encoder that finds the pictures less and less like the first thing it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, pixels):
        angle = 0.1 * max(0, self.calls - 1)
        self.calls += 1
        return self.weight * torch.tensor([[math.cos(angle), math.sin(angle)]]).expand(len(pixels), -1)


@pytest.mark.parametrize("guard", [True, False])
def test_the_guard_ends_guidance_when_a_held_out_encoder_disagrees(parts, guard):
    with torch.inference_mode(False):
        watcher = MetricEncoder(TowerEncoder(TurningAway(), Preprocess((64, 64))))
    guidance = crude(parts, held_out_encoder=watcher, guard=guard)
    _, report = sampled(parts["model"], guidance, steps=8)
    assert len(report["evaluations"]) == (3 if guard else 8)
    assert report["stopped"] == [0]
    assert [term["name"] for term in report["held_out"]] == ["S_held_out_content", "S_held_out_style"]


def test_an_encoder_that_does_not_guide_is_held_out(parts):
    names = [request.name for request in plan(parts, style_strength=0.0).watched()]
    assert names == ["S_held_out_content"]
    assert plan(parts).watched() == []
    _, report = run(parts["model"], plan(parts, style_strength=0.0))
    assert all(len(e["similarities"]["S_held_out_content"]) == 1 for e in report["evaluations"])


def test_gradients_that_are_not_numbers_skip_their_step_and_are_counted(parts, monkeypatch):
    original, calls = LatentDecoder.__call__, []

    def poisoned(self, latents):
        calls.append(None)
        return original(self, latents) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(LatentDecoder, "__call__", poisoned)
    out, report = run(parts["model"], plan(parts, options=GuidanceOptions(), window=GuidanceWindow(0.0, 1.0)))
    assert report["skipped"] == 1
    assert [e["skipped"][0] for e in report["evaluations"]].index(True) == 1
    assert report["evaluations"][1]["displacement_rms"] == [0.0]
    assert torch.isfinite(out).all()


def test_an_interrupt_ends_a_correction_before_its_next_network(parts, monkeypatch):
    original, seen = LatentDecoder.__call__, []

    def interrupting(self, latents):
        seen.append("decoder")
        comfy.model_management.interrupt_current_processing()
        return original(self, latents)

    preprocess = parts["clip_encoder"].encoder.preprocess
    run(parts["model"], plan(parts))  # the references are known now
    before = fingerprint(parts["model"])
    expected, _ = run(parts["model"])
    monkeypatch.setattr(LatentDecoder, "__call__", interrupting)
    monkeypatch.setattr(
        parts["clip_encoder"].encoder, "preprocess", lambda x: (seen.append("encoder"), preprocess(x))[1]
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(parts["model"], plan(parts))
    assert seen == ["decoder"]
    monkeypatch.undo()
    assert_unchanged(before, parts["model"])
    assert torch.equal(run(parts["model"])[0], expected)


def test_references_are_embedded_once(parts, monkeypatch):
    run(parts["model"], plan(parts))
    first, _ = run(parts["model"], plan(parts))
    calls = []
    preprocess = parts["clip_encoder"].encoder.preprocess
    monkeypatch.setattr(parts["clip_encoder"].encoder, "preprocess", lambda x: (calls.append(len(x)), preprocess(x))[1])
    # The same contents in another tensor are known; other contents are not.
    again, report = run(
        parts["model"], plan(parts, style_image=parts["style_image"].clone(), options=GuidanceOptions())
    )
    assert torch.equal(again, first) and len(calls) == len(report["evaluations"])
    run(parts["model"], plan(parts, style_image=parts["style_image"] * 0.5, options=GuidanceOptions()))
    assert len(calls) == 2 * len(report["evaluations"]) + 1
