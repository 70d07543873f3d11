"""Loader, router and report in the running ComfyUI, as its page would queue them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from comfy_server import ComfyServer

from ..host.workflows import STYLE, SUBJECT, latent, loader, node, record, router, run, sampled, stock, world


@pytest.fixture(scope="module")
def policies(server: ComfyServer) -> list[str]:
    """The policies the router node offers."""
    return server.get("/object_info/KLLayerRouter")["KLLayerRouter"]["input"]["required"]["policy"][1]["options"]


SSR_INPUTS = {"subject_prompt": ["prompt", 0], "style_prompt": ["prompt", 0], "latent": ["empty", 0]}


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / (b.max() - b.min()))


def test_loader_alone_routes_by_the_recommended_policy(server: ComfyServer) -> None:
    graph = world(
        dual=loader(),
        routed=router("recommended"),
        text=node("PreviewAny", source=["dual", 2]),
        **sampled("alone", "dual", report=True),
        **sampled("routed", "routed", report=True),
        **sampled("plain", "model"),
    )
    outputs = run(server, graph)
    assert torch.equal(latent(server, outputs, "alone"), latent(server, outputs, "routed"))
    assert not torch.equal(latent(server, outputs, "alone"), latent(server, outputs, "plain"))
    assert record(outputs, "alone")["policy"] == record(outputs, "routed")["policy"]
    (text,) = outputs["text"]["text"]
    assert SUBJECT in text and STYLE in text and "36" in text


def test_every_policy_the_router_offers_draws_a_picture_of_its_own(server: ComfyServer, policies: list[str]) -> None:
    graph = world(dual=loader())
    for policy in policies:
        graph |= {policy: router(policy), **sampled(policy, policy, report=True)}
    graph["ssr_merge"]["inputs"] |= SSR_INPUTS
    outputs = run(server, graph)
    latents = {policy: latent(server, outputs, policy) for policy in policies}
    assert all(torch.isfinite(value).all() for value in latents.values())
    assert set(policies) >= {"recommended", "paper", "sum", "kl_soft"}
    for policy in policies:
        twins = [p for p in policies if p != policy and torch.equal(latents[p], latents[policy])]
        # The recommended policy may be listed under its own name too.
        assert all("recommended" in (p, policy) for p in twins), f"{policy} and {twins} are the same"


def test_record_has_the_documented_shape(server: ComfyServer) -> None:
    graph = world(dual=loader(), **sampled("a", "dual", report=True, steps=4))
    outputs = run(server, graph)
    found = record(outputs, "a")
    assert found["version"] == 1 and found["steps"] == 4 and len(found["sigmas"]) == 5
    assert [(lora["name"], lora["role"], lora["strength"]) for lora in found["loras"]] == [
        (SUBJECT, "subject", 1.0),
        (STYLE, "style", 1.0),
    ]
    assert len(found["layers"]) == len(set(found["layers"])) >= 30
    for table in (found["scores"], found["weights"]):
        assert [len(layers) for layers in table] == [len(found["layers"])] * 2
        values = [value for layers in table for steps in layers for value in steps]
        assert len(values) == 2 * 4 * len(found["layers"])
        assert all(value is not None and math.isfinite(value) and value >= 0 for value in values)
    assert any("subject" in line for line in outputs["a.report"]["text"])


def test_paper_gives_each_layer_to_one_lora(server: ComfyServer) -> None:
    # Without classifier-free guidance a decision is one choice, not the mean of two.
    graph = world(dual=loader(), routed=router("paper"), **sampled("a", "routed", report=True, cfg=1.0))
    subject, style = record(run(server, graph), "a")["weights"]
    pairs = [pair for layers in zip(subject, style, strict=True) for pair in zip(*layers, strict=True)]
    assert set(pairs) == {(1.0, 0.0), (0.0, 1.0)}


def test_sum_is_core_stacked_loaders(server: ComfyServer) -> None:
    graph = world(
        dual=loader(subject_strength=0.8, style_strength=1.2),
        routed=router("sum"),
        one=stock("model", SUBJECT, 0.8),
        both=stock("one", STYLE, 1.2),
        **sampled("ours", "routed"),
        **sampled("core", "both"),
    )
    outputs = run(server, graph)
    difference = relative_difference(latent(server, outputs, "ours"), latent(server, outputs, "core"))
    print(f"sum against two stacked loaders, three steps: {difference:.2e} of the range")
    assert difference <= 1e-4


@pytest.mark.parametrize("order", ["router first", "chained loaders", "chained and router between"])
def test_order_of_nodes_does_not_matter(server: ComfyServer, order: str) -> None:
    graph = world(dual=loader(), routed=router("paper"), **sampled("usual", "routed"))
    if order == "router first":
        graph |= {"before": router("paper", "model"), "last": loader("before")}
    else:
        middle = order == "chained and router between"
        graph |= {"first": loader(style="None"), "last": loader("between", subject="None")}
        graph["between"] = router("paper" if middle else "sum", "first")
        graph["last router"] = router("paper", "last")
        graph |= sampled("last router", "last router")
    graph |= sampled("other", "last")
    outputs = run(server, graph)
    name = "last router" if order == "chained loaders" else "other"
    assert torch.equal(latent(server, outputs, name), latent(server, outputs, "usual"))


def test_one_lora_alone_is_core_loader(server: ComfyServer) -> None:
    graph = world(dual=loader(style="None"), core=stock("model", SUBJECT))
    outputs = run(server, graph | sampled("ours", "dual") | sampled("core", "core"))
    difference = relative_difference(latent(server, outputs, "ours"), latent(server, outputs, "core"))
    print(f"one LoRA against core's loader, three steps: {difference:.2e} of the range")
    assert difference <= 1e-4


def test_zero_strengths_are_no_lora(server: ComfyServer) -> None:
    graph = world(dual=loader(subject_strength=0.0, style_strength=0.0), **sampled("ours", "dual"))
    outputs = run(server, graph | sampled("plain", "model"))
    assert torch.equal(latent(server, outputs, "ours"), latent(server, outputs, "plain"))


def test_records_of_two_samplers_and_two_queued_runs_do_not_mix(server: ComfyServer) -> None:
    def graph(seed: int) -> dict[str, Any]:
        both = sampled("long", "dual", report=True, seed=seed, steps=4)
        return world(dual=loader(), **both, **sampled("short", "dual", report=True, seed=seed, steps=2))

    first, second = run(server, graph(21)), run(server, graph(22))
    for outputs in (first, second):
        assert (record(outputs, "long")["steps"], record(outputs, "short")["steps"]) == (4, 2)
    assert record(first, "long")["scores"] != record(second, "long")["scores"]
    # The model and its loader are cached by now: the same run gives the same record again.
    again = graph(21)
    again["long.sample"]["inputs"]["denoise"] = 0.99995  # counts as 1, but the executor's cache does not know
    assert record(run(server, again), "long") == record(first, "long")


def test_report_for_another_models_latent_says_so(server: ComfyServer) -> None:
    graph = world(dual=loader(), **sampled("plain", "model"))
    graph["mismatch"] = node("RoutingReport", model=["dual", 0], latent=["plain.sample", 0])
    assert "did not make this latent" in run(server, graph)["mismatch"]["text"][0]
    graph["mismatch"] = node("RoutingReport", model=["model", 0], latent=["plain.sample", 0])
    assert "carries no LoRAs" in run(server, graph)["mismatch"]["text"][0]
