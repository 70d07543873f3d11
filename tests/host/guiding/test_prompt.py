"""A prompt as a metric: guidance towards it, and Fusion Score by it."""

import comfy.utils
import pytest
import torch

from lora_conductor.guidance.losses import CLIP_TEXT, HELD_OUT
from lora_conductor.host.comparing import fusion_score
from lora_conductor.host.core import ConductorError
from lora_conductor.host.guiding import GuidanceOptions
from lora_conductor.host.guiding import plan as guidance_plan
from lora_conductor.host.vision import load_metric_encoder

from .. import tiny_encoders
from .guided import plan, run

PROMPT = "a fox, drawn in ink"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tiny_encoders.write_clip(tmp_path_factory.mktemp("text") / "whole_clip.safetensors", text=True)
    with torch.inference_mode():
        return load_metric_encoder(str(path))


def by_prompt(parts, reader, **changes):
    settings = {"clip_encoder": reader, "prompt": PROMPT, "prompt_strength": 1.0}
    settings |= {"subject_strength": 0.0, "style_strength": 0.0, "subject_image": None, "style_image": None}
    return plan(parts, **{**settings, **changes})


def test_guidance_raises_the_prompts_score(parts, reader, record_property):
    guided = {}
    for strength in (1e-7, 0.2):
        _, guided[strength] = run(parts["model"], by_prompt(parts, reader, guidance_strength=strength))
    assert [term["name"] for term in guided[0.2]["terms"]] == [CLIP_TEXT]
    assert guided[0.2]["skipped"] == 0
    before, after = (guided[strength]["final"][CLIP_TEXT][0] for strength in (1e-7, 0.2))
    record_property("S_CLIP_text unguided", before)
    record_property("S_CLIP_text guided", after)
    assert after > before + 1e-3


@pytest.mark.parametrize("mode", ["x0", "paper"])
def test_beside_the_pictures(parts, reader, mode):
    options = GuidanceOptions(mode=mode)
    guidance = plan(parts, clip_encoder=reader, prompt=PROMPT, prompt_strength=0.5, options=options)
    _, scores = run(parts["model"], guidance)
    weights = {term["name"]: term["weight"] for term in scores["terms"]}
    assert weights[CLIP_TEXT] == (0.5 if mode == "x0" else 0.5 / 3)
    assert all(CLIP_TEXT in evaluation["similarities"] for evaluation in scores["evaluations"])


def test_without_strength_the_prompt_is_not_read(parts, monkeypatch):
    monkeypatch.setattr(guidance_plan, "embed_prompt", None)
    expected, _ = run(parts["model"], plan(parts))
    got, scores = run(parts["model"], plan(parts, prompt=PROMPT))
    assert torch.equal(got, expected)
    assert CLIP_TEXT not in {term["name"] for term in scores["terms"]}


def test_a_held_out_encoder_reads_the_prompt_if_it_can(parts, reader):
    for held_out, names in ((reader, [HELD_OUT["prompt"]]), (parts["dino_encoder"], [])):
        _, scores = run(parts["model"], by_prompt(parts, reader, held_out_encoder=held_out, dino_encoder=None))
        assert [term["name"] for term in scores["held_out"]] == names


def test_the_text_half_is_read_once_and_not_kept(parts, tmp_path, monkeypatch):
    path = tiny_encoders.write_clip(tmp_path / "clip.safetensors", text=True)
    encoder = load_metric_encoder(str(path))
    reads, original = [], comfy.utils.load_torch_file

    def noting(file, *args, **kwargs):
        reads.append(file)
        return original(file, *args, **kwargs)

    monkeypatch.setattr(comfy.utils, "load_torch_file", noting)
    for _ in range(2):
        run(parts["model"], by_prompt(parts, encoder))
    assert reads == [str(path)]
    assert not any("token_embedding" in name for name, _ in encoder.encoder.module.named_parameters())
    assert encoder.prompts.embed(PROMPT).shape == (1, tiny_encoders.OPEN_CLIP["embed_dim"])


def test_what_cannot_be_read_is_named_before_sampling(parts, reader, tmp_path, monkeypatch):
    import nodes

    monkeypatch.setattr(nodes, "common_ksampler", None)
    core = tiny_encoders.core_clip_vision("clip_vision_model", tmp_path)
    path = tiny_encoders.write_clip(tmp_path / "gone.safetensors", text=True)
    gone = load_metric_encoder(str(path))
    path.write_bytes(b"")
    cases = [
        ({"prompt": "  "}, "^prompt: prompt_strength is 1, but the prompt is empty"),
        ({"clip_encoder": parts["clip_encoder"]}, "^clip_encoder: this encoder reads no prompts.*prompt_strength to 0"),
        ({"clip_encoder": core}, "^clip_encoder: this encoder reads no prompts"),
        ({"clip_encoder": None}, "^clip_encoder: the prompt is compared by a CLIP-type encoder.*prompt_strength to 0"),
        ({"clip_encoder": gone}, r"^gone\.safetensors: cannot be read"),
    ]
    for changes, message in cases:
        with pytest.raises(ConductorError, match=message):
            run(parts["model"], by_prompt(parts, reader, **changes))


def test_fusion_score_by_the_prompt(parts, reader):
    images = torch.cat([tiny_encoders.smooth_picture(seed) for seed in (1, 2)])
    score = fusion_score(
        images, {"encoder": reader, "encoder_2": parts["dino_encoder"]}, images[:1], None, prompt=PROMPT
    )
    text = reader.prompts.embed(PROMPT)
    with torch.no_grad():
        own = torch.nn.functional.cosine_similarity(reader.encoder.embed(images.movedim(-1, 1)), text)
    assert score.prompt == pytest.approx(float(own.mean()), abs=1e-6)
    assert "prompt (encoder)" in score.table and "prompt (encoder_2)" not in score.table
    assert fusion_score(images, {"encoder": reader}, images[:1], None).prompt == 0.0
    assert fusion_score(images, {"encoder": reader}, None, None, prompt=PROMPT).subject == 0.0
    with pytest.raises(ConductorError, match="^encoder: this encoder reads no prompts.*leave prompt empty"):
        fusion_score(images, {"encoder": parts["dino_encoder"]}, images[:1], None, prompt=PROMPT)
    with pytest.raises(ConductorError, match="or write a prompt"):
        fusion_score(images, {"encoder": reader}, None, None, prompt="  ")
