"""API-format workflows on the small world for the running server, and what comes back from them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import safetensors.torch
from torch import Tensor

from comfy_server import ComfyServer

SUBJECT, STYLE = "lora_subject_fox.safetensors", "lora_style_openmoji.safetensors"
Workflow = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def world(**more: dict[str, Any]) -> Workflow:
    """The small world's model and prompt, and whatever else a test adds."""
    return {
        "model": node("UNETLoader", unet_name="emoji_tinyflux_fp16.safetensors", weight_dtype="default"),
        "prompt": node("EmojiWorldPrompt", subject="fox", style="openmoji"),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        **more,
    }


def loader(model: str = "model", subject: str = SUBJECT, style: str = STYLE, **strengths: float) -> dict[str, Any]:
    inputs = {f"{role}_{part}strength": 1.0 for role in ("subject", "style") for part in ("", "clip_")} | strengths
    return node("DualLoRADynamicLoader", model=[model, 0], subject_lora=subject, style_lora=style, **inputs)


def router(policy: str, model: str = "dual") -> dict[str, Any]:
    return node("KLLayerRouter", model=[model, 0], policy=policy, temperature=0.5, balance=0.0)


def stock(model: str, file: str, strength: float = 1.0) -> dict[str, Any]:
    return node("LoraLoaderModelOnly", model=[model, 0], lora_name=file, strength_model=strength)


def ksampler(model: str = "model", *, class_type: str = "KSampler", **changes: Any) -> dict[str, Any]:
    """A KSampler, or a node with its inputs and more."""
    inputs = {
        "model": [model, 0],
        "seed": 1,
        "steps": 3,
        "cfg": 2.5,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": ["prompt", 0],
        "negative": ["prompt", 1],
        "latent_image": ["empty", 0],
        "denoise": 1.0,
    }
    return node(class_type, **(inputs | changes))


def saved(name: str) -> Workflow:
    """The latent of the node ``name.sample``, saved; read it with the same name."""
    return {f"{name}.save": node("SaveLatent", samples=[f"{name}.sample", 0], filename_prefix="test")}


def sampled(name: str, model: str, *, report: bool = False, **changes: Any) -> Workflow:
    """A KSampler on a model with its latent saved, and the routing report if asked; read them with the same name."""
    graph = {f"{name}.sample": ksampler(model, **changes), **saved(name)}
    if report:
        graph[f"{name}.report"] = node("RoutingReport", model=[model, 0], latent=[f"{name}.sample", 0])
    return graph


def guidance_world(clip: str, dino: str, **more: dict[str, Any]) -> Workflow:
    """The small world with what guidance needs: VAE, reference pictures, and the two encoder files given."""
    return world(
        vae=node("VAELoader", vae_name="emoji_taef1_vae_fp16.safetensors"),
        subject=node("LoadImage", image="reference_fox_noto.png"),
        style=node("LoadImage", image="style_openmoji_koala.png"),
        clip=node("MetricEncoderLoader", encoder_name=clip, library="auto", model_name=""),
        dino=node("MetricEncoderLoader", encoder_name=dino, library="auto", model_name=""),
        **more,
    )


GUIDANCE: dict[str, Any] = {
    "vae": ["vae", 0],
    "subject_image": ["subject", 0],
    "style_image": ["style", 0],
    "clip_encoder": ["clip", 0],
    "dino_encoder": ["dino", 0],
    "subject_strength": 1.0,
    "style_strength": 1.0,
    "guidance_strength": 0.2,
    "guidance_start": 0.2,
    "guidance_end": 0.8,
    "guidance_every": 2,
}
"""Inputs of every guiding node, in a ``guidance_world``."""


def guided(name: str, leave_out: Collection[str] = (), **changes: Any) -> Workflow:
    """A MetricGuidedSampler with its latent saved and its scores shown; read them with the same name."""
    inputs = {key: value for key, value in (GUIDANCE | changes).items() if key not in leave_out}
    return {
        f"{name}.sample": ksampler(class_type="MetricGuidedSampler", **inputs),
        **saved(name),
        f"{name}.scores": node("PreviewAny", source=[f"{name}.sample", 1]),
    }


def run(server: ComfyServer, graph: Workflow) -> dict[str, Any]:
    return server.queue(graph, timeout=300)["outputs"]


def latent(server: ComfyServer, outputs: dict[str, Any], name: str) -> Tensor:
    """The latent ``[B, 16, 8, 8]`` that ``sampled(name, ...)`` or ``guided(name, ...)`` saved."""
    return safetensors.torch.load(server.view(outputs[f"{name}.save"]["latents"][0]))["latent_tensor"]


def record(outputs: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = outputs[f"{name}.report"]["routing"]
    return json.loads(json.dumps(found))


def scores(outputs: dict[str, Any], name: str) -> dict[str, Any]:
    """What ``guided(name, ...)`` scored."""
    return json.loads(outputs[f"{name}.scores"]["text"][0])
