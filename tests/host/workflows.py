"""API-format workflows on the small world for the running server, and what comes back from them."""

from __future__ import annotations

import json
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


def sampled(
    name: str, model: str, *, report: bool = False, seed: int = 1, steps: int = 3, cfg: float = 2.5
) -> Workflow:
    """A KSampler on a model with its latent saved, and the routing report if asked; read them with the same name."""
    sampler = node(
        "KSampler",
        model=[model, 0],
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        positive=["prompt", 0],
        negative=["prompt", 1],
        latent_image=["empty", 0],
        denoise=1.0,
    )
    save = node("SaveLatent", samples=[f"{name}.sample", 0], filename_prefix="test")
    graph = {f"{name}.sample": sampler, f"{name}.save": save}
    if report:
        graph[f"{name}.report"] = node("RoutingReport", model=[model, 0], latent=[f"{name}.sample", 0])
    return graph


def run(server: ComfyServer, graph: Workflow) -> dict[str, Any]:
    return server.queue(graph, timeout=300)["outputs"]


def latent(server: ComfyServer, outputs: dict[str, Any], name: str) -> Tensor:
    """The latent ``[1, 16, 8, 8]`` that ``sampled(name, ...)`` saved."""
    return safetensors.torch.load(server.view(outputs[f"{name}.save"]["latents"][0]))["latent_tensor"]


def record(outputs: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = outputs[f"{name}.report"]["routing"]
    return json.loads(json.dumps(found))
