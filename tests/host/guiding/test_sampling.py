"""Guided sampling on the small world's model, in this process and under inference mode as in the executor."""

import comfy.model_management
import comfy.sd
import comfy.utils
import nodes
import pytest
import torch

from lora_conductor.guidance.schedules import GuidanceWindow
from lora_conductor.host.core import SAMPLER_NAMES, ConductorError
from lora_conductor.host.guiding import GuidancePlan, guide
from lora_conductor.host.guiding.run import GuidedRun

from .. import tiny_encoders
from ..tiny import relative, tiny_unet
from .guided import assert_unchanged, fingerprint, plan, run


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_off_is_ksampler_bit_for_bit(parts, sampler):
    expected, _ = run(parts["model"], sampler=sampler, batch=2, steps=3)
    for off in ({"guidance_strength": 0.0}, {"subject_strength": 0.0, "style_strength": 0.0}):
        nothing = GuidancePlan(**{"subject_strength": 1.0, "style_strength": 1.0, "guidance_strength": 1.0, **off})
        got, scores = run(parts["model"], nothing, sampler=sampler, batch=2, steps=3)
        assert torch.equal(got, expected)
        assert scores == {"version": 1, "guided": False}


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "dpmpp_2m", "uni_pc", "dpm_adaptive"])
def test_guidance_raises_what_it_guides(parts, sampler):
    # So weak a guidance that it changes nothing visible tells what the plain picture scores.
    _, plain = run(parts["model"], plan(parts, guidance_strength=1e-7), sampler=sampler)
    _, guided = run(parts["model"], plan(parts, guidance_strength=0.2), sampler=sampler)
    weights = {term["name"]: term["weight"] for term in guided["terms"]}
    assert weights == {"S_DINO_content": 1.0, "S_CLIP_style": 1.0}

    def total(scores):
        return sum(weight * scores["final"][name][0] for name, weight in weights.items())

    print(f"{sampler}: weighted similarity {total(plain):.4f} -> {total(guided):.4f}")
    assert total(guided) > total(plain) + 1e-3
    assert guided["skipped"] == 0


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_only_the_window_is_guided_and_displacements_are_as_asked(parts, cfg):
    guidance = plan(parts, window=GuidanceWindow(0.2, 0.8, 2))
    _, scores = run(parts["model"], guidance, steps=10, cfg=cfg)
    assert [evaluation["step"] for evaluation in scores["evaluations"]] == [2, 4, 6]
    assert scores["steps"] == 10
    assert all(evaluation["displacement_rms"][0] > 0 for evaluation in scores["evaluations"])
    expected, _ = run(parts["model"], steps=10, cfg=cfg)
    late = plan(parts, window=GuidanceWindow(0.2, 0.8), guidance_strength=1e-9)
    almost, _ = run(parts["model"], late, steps=10, cfg=cfg)
    assert relative(almost, expected) < 1e-5


def test_a_batch_is_corrected_as_its_members_are_alone_bit_for_bit(parts):
    guidance = plan(parts)
    predictions = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        guided = GuidedRun(guidance, [1.0, 0.75, 0.5, 0.25, 0.0], parts["model"].model.latent_format)
        comfy.model_management.load_models_gpu([parts["vae"].patcher])
        guided.encode_references()

        def correct(denoised):
            return guided.correct(denoised, 2)

        together = correct(predictions.clone())
        alone = torch.cat([correct(prediction.clone()) for prediction in predictions.split(1)])
        guided.close()
    assert torch.equal(together, alone)
    assert not torch.equal(together, predictions)


def test_a_batch_gives_what_its_members_give_alone(parts):
    # The model rounds differently for other batch sizes (1e-6 of the range), and each correction amplifies that, since
    # the gradient of a decoder with ReLUs jumps: a weak guidance keeps the two sources of difference apart.
    together, scores = run(parts["model"], plan(parts, guidance_strength=0.01), batch=2)
    for i in range(2):
        alone, own = run(parts["model"], plan(parts, guidance_strength=0.01), batch=1, batch_index=[i])
        difference = relative(together[i : i + 1], alone)
        print(f"member {i}: {difference:.1e} of the range")
        assert difference < 1e-4
        assert own["final"]["S_CLIP_style"][0] == pytest.approx(scores["final"]["S_CLIP_style"][i], abs=1e-4)


def test_the_same_inputs_give_the_same_picture(parts):
    assert torch.equal(run(parts["model"], plan(parts))[0], run(parts["model"], plan(parts))[0])


def test_runs_leave_the_model_as_it_was(parts):
    model = parts["model"]
    run(model)
    before = fingerprint(model)
    expected, _ = run(model)
    run(model, plan(parts))
    assert_unchanged(before, model)

    class Stop(Exception):
        pass

    def stopping(images):
        raise Stop

    clip = parts["clip_encoder"]
    embed = clip.encoder.preprocess
    clip.encoder.preprocess = stopping
    try:
        with pytest.raises(Stop):
            run(model, plan(parts))
    finally:
        clip.encoder.preprocess = embed
    assert_unchanged(before, model)

    guidance = plan(parts)
    reports = []
    patched = guide(model, guidance, reports)
    original = comfy.model_management.throw_exception_if_processing_interrupted
    calls = []

    def interrupted_at_third_look():
        calls.append(None)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        original()

    comfy.model_management.throw_exception_if_processing_interrupted = interrupted_at_third_look
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(patched)
    finally:
        comfy.model_management.throw_exception_if_processing_interrupted = original
    assert reports[0]["final"] is None
    assert_unchanged(before, model)
    assert torch.equal(run(model)[0], expected)


def test_each_role_alone(parts):
    _, scores = run(parts["model"], plan(parts, style_strength=0.0, style_image=None, clip_encoder=None))
    assert [term["name"] for term in scores["terms"]] == ["S_DINO_content"]
    _, scores = run(parts["model"], plan(parts, subject_strength=0.0, subject_image=None, dino_encoder=None))
    assert [term["name"] for term in scores["terms"]] == ["S_CLIP_style"]
    _, scores = run(parts["model"], plan(parts, style_strength=0.0, style_image=None, dino_encoder=None))
    assert [term["name"] for term in scores["terms"]] == ["S_CLIP_content"]


def test_core_clip_vision_guides(parts, tmp_path):
    with torch.inference_mode():
        clip = tiny_encoders.core_clip_vision("clip_vision_model", tmp_path)
        dino = tiny_encoders.core_clip_vision("dinov2", tmp_path, patch_size=14, image_size=518)
    guidance = plan(parts, clip_encoder=clip, dino_encoder=dino, guidance_strength=0.2)
    _, scores = run(parts["model"], guidance)
    assert scores["skipped"] == 0
    assert all(evaluation["gradient_rms"][0] > 0 for evaluation in scores["evaluations"])


def test_inpainting_keeps_what_the_mask_protects(parts):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1.0
    samples = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    guided, _ = run(parts["model"], plan(parts), samples=samples, noise_mask=mask)
    torch.testing.assert_close(guided[..., :4], samples[..., :4], atol=1e-4, rtol=1e-4)


def test_missing_and_wrong_inputs_are_named_before_sampling(parts, monkeypatch):
    def sampled(*args, **kwargs):
        raise AssertionError("sampling started")

    monkeypatch.setattr(nodes, "common_ksampler", sampled)
    empty = torch.zeros(0, 64, 64, 3)
    cases = [
        ({"vae": None}, "^vae: "),
        ({"subject_image": None}, "^subject_image: .*no reference picture"),
        ({"style_image": None}, "^style_image: .*no reference picture"),
        ({"clip_encoder": None}, "^clip_encoder: .*style"),
        ({"clip_encoder": None, "dino_encoder": None}, "^clip_encoder and dino_encoder: "),
        ({"style_image": empty}, "^style_image: .*empty"),
        ({"subject_image": torch.zeros(1, 64, 64)}, "^subject_image: expected"),
        ({"subject_image": torch.full((1, 64, 64, 3), float("nan"))}, "^subject_image: .*not numbers"),
        ({"dino_encoder": object()}, "^dino_encoder: .*not an image encoder"),
    ]
    for changes, message in cases:
        with pytest.raises(ConductorError, match=message):
            run(parts["model"], plan(parts, **changes))
    with pytest.raises(ConductorError, match="^vae: .*16 channels.*makes 4"):
        run(tiny_unet(), plan(parts))


def test_video_latents_are_refused(parts):
    with pytest.raises(ConductorError, match="^latent_image: "):
        run(parts["model"], plan(parts), samples=torch.zeros(1, 16, 3, 8, 8))
