"""Guided runs of tiny models in this process, and what such a run must leave as it was."""

import json

import nodes
import torch

from lora_conductor.host.core import SamplerCall
from lora_conductor.host.guiding import GuidanceOptions, GuidancePlan, sample

from ..tiny import conditioning

STEPS = 6
# Encoder files of the running server.
CLIP_FILE, DINO_FILE = "test_clip.safetensors", "test_dino.safetensors"
TEXT_FILE = "test_clip_with_text.safetensors"


def plan(parts, **changes) -> GuidancePlan:
    settings = {"subject_strength": 1.0, "style_strength": 1.0, "guidance_strength": 0.1}
    settings |= {key: value for key, value in parts.items() if key != "model"}
    settings |= {"options": GuidanceOptions(final_scores=True)}
    return GuidancePlan(**{**settings, **changes})


def run(model, guidance=None, *, sampler="euler", scheduler="simple", batch=None, cfg=2.5, steps=STEPS, **latent):
    latent.setdefault("samples", torch.zeros(batch or 1, 16, 8, 8))
    positive, negative = conditioning(model, 1), conditioning(model, 2)
    with torch.inference_mode():
        arguments = (5, steps, cfg, sampler, scheduler, positive, negative, latent)
        if guidance is None:
            (out,) = nodes.common_ksampler(model, *arguments)
            return out["samples"], {}
        out, scores = sample(model, SamplerCall(*arguments), guidance)
        return out["samples"], json.loads(scores)


def fingerprint(model):
    """Everything of a MODEL that a run could leave changed."""
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    forwards = {name: vars(module).get("forward") for name, module in model.model.named_modules()}
    return weights, forwards, dict(model.patches), repr(model.model_options), repr(model.wrappers)


def assert_unchanged(before, model):
    after = fingerprint(model)
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
