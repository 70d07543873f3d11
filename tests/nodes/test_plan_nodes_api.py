"""Plans and the router's settings in the running ComfyUI, as its page would queue them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_server import ComfyServer, WorkflowError

from ..host.workflows import latent, loader, node, record, router, run, sampled, world

SETTINGS: dict[str, Any] = {
    "score": "standardised_kl",
    "even_out": 0.8,
    "floor": 0.1,
    "smoothing": 0.5,
    "hysteresis": 0.2,
    "time_lead": 0.5,
    "layer_prior": 0.5,
    "granularity": "head",
    "group_attention": True,
    "follow_cond": True,
    "start": 0.1,
    "end": 0.5,
    "cap": 1.2,
}


def settled(policy: str, model: str = "dual", **settings: Any) -> dict[str, Any]:
    made = router(policy, model)
    made["inputs"] |= settings
    return made


def saved(name: str, model: str) -> dict[str, Any]:
    return node(
        "SaveRoutingPlan", model=[model, 0], latent=[f"{name}.sample", 0], filename_prefix=f"routing_plans/{name}"
    )


@pytest.mark.parametrize("settings", [{}, SETTINGS, {"freeze_after": 2}], ids=["neutral", "all", "frozen"])
def test_a_saved_plan_makes_the_same_picture(server: ComfyServer, settings: dict[str, Any]) -> None:
    graph = world(
        dual=loader(), routed=settled("kl_soft", **settings), **sampled("first", "routed", report=True, steps=5)
    )
    outputs = run(server, graph | {"plan": saved("first", "routed")})
    made = latent(server, outputs, "first")
    assert record(outputs, "first")["refinement"] == settings
    (text,) = outputs["plan"]["text"]
    path = Path(text.rpartition(" saved as ")[2])
    assert path.is_file() and json.loads(path.read_text())["version"] == 2

    again = world(dual=loader(), file=node("LoadRoutingPlan", file=f"routing_plans/{path.name} [output]"))
    again["replayed"] = settled("paper", plan=["file", 0])
    outputs = run(server, again | sampled("again", "replayed", report=True, steps=5))
    assert torch.equal(latent(server, outputs, "again"), made)
    assert record(outputs, "again")["policy"]["of"]["policy"] == "kl_soft"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changes_the_picture(server: ComfyServer, name: str) -> None:
    policy = "paper" if name == "hysteresis" else "kl_soft"
    settings = {name: {"hysteresis": 2.0, "cap": 0.5}.get(name, SETTINGS[name])}
    graph = world(dual=loader(), plain=router(policy), turned=settled(policy, **settings))
    outputs = run(server, graph | sampled("plain", "plain", steps=5) | sampled("turned", "turned", steps=5))
    assert not torch.equal(latent(server, outputs, "plain"), latent(server, outputs, "turned"))


def test_a_plan_of_other_loras_is_refused(server: ComfyServer) -> None:
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("mine", "routed"), plan=saved("mine", "routed"))
    graph |= {"other": loader(style="lora_style_fluent-emoji-high-contrast.safetensors")}
    graph |= {"wrong": settled("kl_soft", "other", plan=["plan", 0]), **sampled("theirs", "wrong")}
    with pytest.raises(WorkflowError, match="plan: it was made for subject"):
        run(server, graph)


def test_ssr_merge_says_what_it_needs(server: ComfyServer) -> None:
    graph = world(dual=loader(), routed=router("ssr_merge"), **sampled("a", "routed"))
    with pytest.raises(WorkflowError, match="subject_prompt and style_prompt and latent: ssr_merge"):
        run(server, graph)
    prompts = {"subject_prompt": ["prompt", 0], "style_prompt": ["prompt", 0], "latent": ["empty", 0]}
    with pytest.raises(WorkflowError, match="calibrated on a model with a subject and a style LoRA"):
        run(server, world(routed=settled("ssr_merge", "model", **prompts), **sampled("a", "routed")))
