"""The same guidance as MODEL, GUIDER and SAMPLER, references with masks, Fusion Score: through the real executor."""

import json

import pytest
import torch

from comfy_server import WorkflowError

from .. import workflows
from ..workflows import GUIDANCE, node
from .guided import CLIP_FILE, DINO_FILE


def graph(**more):
    return workflows.guidance_world(CLIP_FILE, DINO_FILE, **more)


def guided_sampler(name="guided", **changes):
    return workflows.guided(name, **({"seed": 3, "steps": 6} | changes))


def custom(name, guider=("plain guider", 0), sampler=("euler", 0)):
    return {
        f"{name}.sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=list(guider),
            sampler=list(sampler),
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
        **workflows.saved(name),
    }


def test_model_guider_and_sampler_guide_as_the_guided_sampler_does(comfy):
    steps = graph(
        **guided_sampler(),
        **{
            "guided model": node("MetricGuidance", model=["model", 0], **GUIDANCE),
            "noise": node("RandomNoise", noise_seed=3),
            "euler": node("KSamplerSelect", sampler_name="euler"),
            "sigmas": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=6, denoise=1.0),
            "plain guider": node(
                "CFGGuider", model=["model", 0], positive=["prompt", 0], negative=["prompt", 1], cfg=2.5
            ),
            "guided guider": node("MetricGuidanceGuider", guider=["plain guider", 0], **GUIDANCE),
            "guided euler": node("MetricGuidanceSampler", sampler=["euler", 0], **GUIDANCE),
        },
        **workflows.sampled("by model", "guided model", seed=3, steps=6),
        **custom("by guider", guider=("guided guider", 0)),
        **custom("by sampler", sampler=("guided euler", 0)),
        **custom("plain"),
        **{"report": node("GuidanceReport", model=["guided model", 0], latent=["by model.sample", 0])},
    )
    outputs = workflows.run(comfy, steps)
    expected = workflows.latent(comfy, outputs, "guided")
    for name in ("by model", "by guider", "by sampler"):
        assert torch.equal(workflows.latent(comfy, outputs, name), expected), name
    # The guider and the sampler that were given are not changed.
    assert not torch.equal(workflows.latent(comfy, outputs, "plain"), expected)
    report, scores = json.loads(outputs["report"]["text"][0]), workflows.scores(outputs, "guided")
    assert [e["similarities"] for e in report["evaluations"]] == [e["similarities"] for e in scores["evaluations"]]


def test_without_strength_the_chains_are_plain(comfy):
    off = GUIDANCE | {"guidance_strength": 0.0}
    outputs = workflows.run(
        comfy,
        graph(
            **{"guided model": node("MetricGuidance", model=["model", 0], **off)},
            **workflows.sampled("off", "guided model", seed=3),
            **workflows.sampled("plain", "model", seed=3),
        ),
    )
    assert torch.equal(workflows.latent(comfy, outputs, "off"), workflows.latent(comfy, outputs, "plain"))


def test_guided_steps_are_told_live(comfy):
    told = []
    comfy.queue(
        graph(**guided_sampler(seed=17)),
        timeout=300,
        on_event=lambda kind, data: told.append(data) if kind == "lora_conductor.guidance" else None,
    )
    first = told[0]
    assert first["node"] == "guided.sample" and first["first"] == 0 and first["evaluations"][0]["step"] == 1
    assert {term["name"] for term in first["terms"]} == {"S_DINO_content", "S_CLIP_style"}
    assert set(first["evaluations"][0]["similarities"]) == {"S_DINO_content", "S_CLIP_style"}


def test_references_with_masks_and_fusion_score(comfy):
    steps = graph(
        mask=node("SolidMask", value=1.0, width=64, height=64),
        small=node("ImageScale", image=["subject", 0], upscale_method="area", width=40, height=48, crop="disabled"),
        one=node("GuidanceReferences", subject_image=["small", 0]),
        two=node("GuidanceReferences", subject_image=["subject", 0], style_image=["style", 0], references=["one", 0]),
        masked=node(
            "GuidanceReferences", subject_image=["subject", 0], subject_mask=["mask", 0], style_image=["style", 0]
        ),
        score=node(
            "FusionScore",
            images=["subject", 0],
            encoder=["dino", 0],
            encoder_2=["clip", 0],
            subject_image=["subject", 0],
            style_image=["style", 0],
        ),
        other=node("FusionScore", images=["style", 0], encoder=["dino", 0], references=["two", 0]),
        whole=node("FusionScore", images=["style", 0], encoder=["dino", 0], references=["masked", 0]),
        plain=node(
            "FusionScore",
            images=["style", 0],
            encoder=["dino", 0],
            subject_image=["subject", 0],
            style_image=["style", 0],
        ),
        **guided_sampler(references=["two", 0], subject_image=["style", 0]),
    )
    outputs = workflows.run(comfy, steps)
    table = outputs["score"]["text"][0]
    assert "subject (encoder)" in table and "style (encoder_2)" in table
    assert table.splitlines()[2].split("|")[2].strip() == "1.000"  # the picture against itself
    # A mask of everything is no mask.
    assert outputs["whole"]["text"] == outputs["plain"]["text"] != outputs["other"]["text"]
    assert workflows.scores(outputs, "guided")["skipped"] == 0


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            {"mask": node("SolidMask", value=0.0, width=64, height=64)},
            "subject_image: its mask is empty",
        ),
        (
            {"mask": node("SolidMask", value=1.0, width=32, height=64)},
            "subject_image: its mask has shape",
        ),
    ],
)
def test_masks_that_cannot_be_used_are_named(comfy, nodes, message):
    references = node("GuidanceReferences", subject_image=["subject", 0], subject_mask=["mask", 0])
    score = node("FusionScore", images=["style", 0], encoder=["dino", 0], references=["references", 0])
    with pytest.raises(WorkflowError, match=message):
        comfy.queue(graph(**nodes, references=references, score=score), timeout=300)


def test_nothing_to_compare_with_is_named(comfy):
    with pytest.raises(WorkflowError, match="subject_image, style_image: there is nothing to compare with"):
        comfy.queue(graph(score=node("FusionScore", images=["style", 0], encoder=["dino", 0])), timeout=300)


def test_each_lora_alone_draws_the_reference_that_is_missing(comfy):
    """Drawn as core would with that LoRA alone, and used like the same picture connected."""
    alone = {
        f"{role} alone": workflows.stock("model", file)
        for role, file in (("subject", workflows.SUBJECT), ("style", workflows.STYLE))
    }
    pictures = {}
    for role in ("subject", "style"):
        alone |= workflows.sampled(role, f"{role} alone", seed=3, steps=6)
        pictures[f"{role} drawn"] = node("VAEDecode", samples=[f"{role}.sample", 0], vae=["vae", 0])
    common = {"model": "dual"}
    connected = guided_sampler(**common, subject_image=["subject drawn", 0], style_image=["style drawn", 0])
    references = ("subject_image", "style_image")
    drawn = guided_sampler("drawn", **common, leave_out=references, references_from="each LoRA alone")
    outputs = workflows.run(comfy, graph(dual=workflows.loader(), **alone, **pictures, **connected, **drawn))
    by_picture, by_lora = (workflows.scores(outputs, name) for name in ("guided", "drawn"))
    for one, other in zip(by_picture["evaluations"], by_lora["evaluations"], strict=True):
        for name, values in one["similarities"].items():
            assert values[0] == pytest.approx(other["similarities"][name][0], abs=2e-3)


def test_drawing_needs_the_loras(comfy):
    sampler = guided_sampler(leave_out=("style_image",), references_from="each LoRA alone")
    with pytest.raises(WorkflowError, match="style_image: the model has no style LoRA to draw a reference with"):
        comfy.queue(graph(**sampler), timeout=300)
