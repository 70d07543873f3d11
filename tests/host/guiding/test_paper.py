"""The paper's refinement: against Eq. 16-20 written out, and against finite differences through the denoiser."""

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import pytest
import torch
import torch.nn.functional as F

from lora_conductor.fusion.policies import Paper
from lora_conductor.guidance.losses import SimilarityObjective, SimilarityTerm
from lora_conductor.guidance.paper import noisy_gradient
from lora_conductor.host.fusing import fused
from lora_conductor.host.guiding import MODES, GuidanceOptions, GuidancePlan, guide
from lora_conductor.host.guiding import run as guided_run
from lora_conductor.host.guiding.denoiser import Denoiser
from lora_conductor.host.vision import gradients_enabled, load_metric_encoder

from ...guidance.objectives import loss
from .. import tiny_encoders
from ..tiny import conditioning, layer_shapes, make_lora, relative, tiny_unet, world_flux

M, STEPS, CFG = 10.0, 5, 2.5


def world_vae():
    path = folder_paths.get_full_path_or_raise("vae", "emoji_taef1_vae_fp16.safetensors")
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return (
        load_metric_encoder(str(tiny_encoders.write_clip(folder / "clip.safetensors"))),
        load_metric_encoder(str(tiny_encoders.write_dino(folder / "dino.safetensors"))),
    )


def plan(vae, encoders, mode=MODES[1], **options):
    return GuidancePlan(
        1.0,
        1.0,
        0.1,
        vae=vae,
        subject_image=tiny_encoders.smooth_picture(1),
        style_image=tiny_encoders.smooth_picture(2),
        clip_encoder=encoders[0],
        dino_encoder=encoders[1],
        options=GuidanceOptions(mode=mode, final_scores=True, **options),
    )


def sampled(model, guidance=None, batch=1, callback=None, steps=STEPS, sampler="euler"):
    """The core KSampler's latents, and the run's report."""
    latent = {"samples": torch.zeros(batch, model.model.latent_format.latent_channels, 8, 8)}
    reports = []
    with torch.inference_mode():
        guided = model if guidance is None else guide(model, guidance, reports)
        conds = conditioning(model, 1), conditioning(model, 2)
        (out,) = nodes.common_ksampler(guided, 5, steps, CFG, sampler, "simple", *conds, latent)
    return out["samples"], reports[0] if reports else None


class ByHand:
    """Eq. 14-20 for the small world with nothing of ours and nothing of core's sampler: weights loaded outside
    inference mode, CFG written out, Euler steps in sigma space, R from the encoders' own modules."""

    def __init__(self, model, vae, encoders):
        self.network = model.model.diffusion_model
        self.vae, self.encoders = vae.first_stage_model, encoders
        self.scale = model.model.latent_format
        pictures = [tiny_encoders.smooth_picture(i).movedim(-1, 1) for i in (1, 2)]
        clip, dino = (encoder.encoder.module for encoder in encoders)
        with torch.no_grad():
            self.references = [clip(self.pixels(pictures[0])), clip(self.pixels(pictures[1]))]
            self.references.append(dino(self.pixels(pictures[1])))
        self.towers = (clip, clip, dino)
        self.conds = [conditioning(model, seed)[0] for seed in (1, 2)]

    @staticmethod
    def pixels(image):
        return (image - 0.5) / 0.5

    def denoised(self, x, sigma):
        comfy.model_management.in_training = True  # core's rotary kernel has no gradient otherwise
        velocity = [
            self.network(x, sigma.expand(len(x)), context.expand(len(x), -1, -1), extra["pooled_output"], None)
            for context, extra in self.conds
        ]
        comfy.model_management.in_training = False
        mixed = velocity[1] + CFG * (velocity[0] - velocity[1])
        return x - sigma * mixed

    def loss(self, x0):
        image = (self.vae.decode(x0 / self.scale.scale_factor + self.scale.shift_factor) + 1.0) / 2.0
        inside = self.pixels(image.clamp(0.0, 1.0) + (image - image.clamp(0.0, 1.0)).detach() * 0)
        similarities = [
            F.cosine_similarity(tower(inside), reference)
            for tower, reference in zip(self.towers, self.references, strict=True)
        ]
        return 1.0 - sum(similarities) / 3.0

    def sample(self, x, sigmas, factor):
        gradients = []
        for sigma, following in zip(sigmas, sigmas[1:], strict=False):
            leaf = x.clone().requires_grad_(True)
            # Core's blocks add in place to what the backward pass needs.
            with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
                x0 = self.denoised(leaf, sigma)
            (gradient,) = torch.autograd.grad(self.loss(x0).sum(), leaf)
            gradients.append(gradient)
            x0 = x0.detach()
            plain = x + (x - x0) / sigma * (following - sigma)
            x = plain - M * factor(sigma, following) * gradient
        return x, gradients


@pytest.mark.parametrize("mode", MODES[1:])
def test_the_small_world_step_by_step(encoders, mode, record_property):
    model, vae = world_flux(), world_vae()  # weights that any code can differentiate
    # A soft decoder output keeps pixels off the clamp, where ours has another gradient on purpose.
    with torch.no_grad():
        vae.first_stage_model.taesd_decoder[-1].weight.mul_(0.3)
        vae.first_stage_model.taesd_decoder[-1].bias.copy_(torch.full((3,), 0.5))
    by_hand = ByHand(model, vae, encoders)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 8, 8), 5)
    factor = (lambda a, b: 1.0) if mode == MODES[1] else (lambda a, b: float(((1 + a**2) * (1 + b**2)) ** 0.5))
    expected, gradients = by_hand.sample(noise * sigmas[0], sigmas, factor)
    expected = model.model.latent_format.process_out(expected)
    unguided, _ = sampled(model)
    got, report = sampled(model, plan(vae, encoders, mode))
    assert [evaluation["step"] for evaluation in report["evaluations"]] == list(range(STEPS))
    for evaluation, gradient in zip(report["evaluations"], gradients, strict=True):
        assert evaluation["gradient_rms"][0] == pytest.approx(float(gradient.square().mean().sqrt()), rel=0.02)
    moved, error = relative(got, unguided), relative(got, expected)
    record_property(f"{mode}: difference to Eq. 16-20 by hand, of the range", error)
    record_property(f"{mode}: displacement by guidance, of the range", moved)
    assert error < 0.01 * moved + 1e-5
    assert [term["weight"] for term in report["terms"]] == [pytest.approx(1 / 3)] * 3


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(("make", "eps", "limit"), [(tiny_unet, 1e-5, 1e-6), (world_flux, 1e-3, 1e-3)])
def test_gradients_through_the_denoiser_equal_finite_differences_in_double(
    make, eps, limit, recompute, record_property
):
    # The FLUX shape turns queries and keys in single precision whatever its weights are, hence its wider limit.
    with torch.inference_mode():
        model = make()
        assert next(model.model.diffusion_model.parameters()).is_inference()
        network = model.model.double()
        network.diffusion_model.dtype = torch.float64
        context, extra = conditioning(model, 1)[0]
        context, pooled = context.double(), extra["pooled_output"].double()
        shape = (1, network.latent_format.latent_channels, 8, 8)
        sigma = torch.full((1,), 0.6, dtype=torch.float64)

        def predict(x, at, model_options, seed):
            # The network itself: core's apply_model rounds its output to single precision.
            if make is world_flux:
                return x - at * network.diffusion_model(x, at, context, pooled, None)
            return x - at * network.diffusion_model(x / (1 + at**2) ** 0.5, at, context)

        options = {} if recompute else {"transformer_options": {"wrappers": {"apply_model": {"a": [None]}}}}
        denoiser = Denoiser(network, predict, sigma, options, 0)
        with gradients_enabled():
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            probe = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

            def embed(images):
                return torch.stack([(images * probe).sum((1, 2, 3)), images.square().sum((1, 2, 3))], dim=1)

            objective = SimilarityObjective({"e": embed}, [SimilarityTerm("S", "e", torch.tensor([[1.0, 0.3]]), 1.0)])

            def decode(latent):
                return torch.sigmoid(latent[:, :3])

            gradient, _, _ = noisy_gradient(x, denoiser, decode, objective)
            assert gradient.dtype == torch.float64
            worst = 0.0
            for seed in range(3):
                direction = torch.randn(shape, generator=torch.Generator().manual_seed(7 + seed), dtype=torch.float64)
                with torch.no_grad():
                    ahead, behind = (
                        loss(objective, decode(denoiser(x + step * direction))).double().sum() for step in (eps, -eps)
                    )
                slope = float((gradient * direction).sum())
                worst = max(worst, abs(float(ahead - behind) / (2 * eps) / slope - 1.0))
        denoiser.close()
    record_property(f"{make.__name__}: relative error of the directional derivative", worst)
    assert worst < limit


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "uni_pc"])
def test_other_samplers_under_inference_mode(encoders, sampler):
    with torch.inference_mode():
        model, vae = world_flux(), world_vae()
    _, report = sampled(model, plan(vae, encoders, paper_step=100.0), batch=2, sampler=sampler)
    assert report["skipped"] == 0 and report["final"] is not None
    assert all(rms > 0 for evaluation in report["evaluations"] for rms in evaluation["gradient_rms"])


def test_routed_loras_are_in_the_gradient(encoders, tmp_path, monkeypatch):
    """The backward pass comes after the fused forwards were taken off: nothing may be recomputed without them."""
    recomputed = []

    class Noting(Denoiser):
        def __init__(self, *args):
            super().__init__(*args)
            recomputed.append(self._recompute)

    monkeypatch.setattr(guided_run, "Denoiser", Noting)
    with torch.inference_mode():
        model, vae = world_flux(), world_vae()
    shapes = {key: shape for key, shape in layer_shapes(model).items() if "blocks" in key}
    paths = [make_lora(tmp_path / f"{i}.safetensors", shapes, seed=i) for i in (1, 2)]
    routed = fused(model, paths[0], paths[1], Paper())
    got, report = sampled(routed, plan(vae, encoders))
    unguided, _ = sampled(routed)
    sampled(model, plan(vae, encoders))
    assert recomputed == [False] * STEPS + [True] * STEPS
    assert report["skipped"] == 0
    assert torch.isfinite(got).all() and not torch.equal(got, unguided)
