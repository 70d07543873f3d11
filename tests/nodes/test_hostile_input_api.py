"""Hostile texts and names through the running ComfyUI: one named error, and the server goes on."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import safetensors.torch
import torch

from comfy_server import ComfyServer, WorkflowError

from ..host.workflows import STYLE, loader, node, router, run, sampled, world

SURROGATE = "\ud800"


def plain(**changes: Any) -> dict[str, Any]:
    made = {"format": "lora-conductor-plan", "version": 1, "loras": [], "policy": {"policy": "sum"}, "refinement": {}}
    return {**made, "sigmas": [], "layers": [], "calls": [], "frozen": None, **changes}


def refused(server: ComfyServer, graph: dict[str, Any]) -> str:
    """The error of a workflow; the server then runs another."""
    with pytest.raises(WorkflowError) as caught:
        server.queue(graph, timeout=60)
    server.queue({"a": node("EmptyLatentImage", width=64, height=64, batch_size=1), "b": saved()}, timeout=60)
    text = str(caught.value)
    assert text.encode() and "Traceback" not in text
    return text


def saved() -> dict[str, Any]:
    return node("SaveLatent", samples=["a", 0], filename_prefix="alive")


def routed(file: Any) -> dict[str, Any]:
    read = node("LoadRoutingPlan", file=file)
    return world(dual=loader(), file=read, routed=router("sum") | {}, **sampled("a", "routed")) | {
        "routed": node("KLLayerRouter", model=["dual", 0], policy="sum", temperature=0.5, balance=0.0, plan=["file", 0])
    }


BAD = {
    "version": (plain(version=SURROGATE), "it has version '.*ud800'"),
    "policy": (plain(policy={"policy": SURROGATE}), "ud800"),
    "LoRA": (plain(loras=[{"name": SURROGATE, "role": "subject", "strength": 1.0, "sha256": "x"}]), "made for.*ud800"),
    "deep": ({"format": "lora-conductor-plan", "version": [[[SURROGATE]]]}, "it has version a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_plan_with_a_lone_surrogate_is_refused_and_the_server_goes_on(server: ComfyServer, case: str) -> None:
    content, said = BAD[case]
    (server.base_dir / "input" / f"bad_{case}.json").write_text(json.dumps(content))
    text = refused(server, routed(f"bad_{case}.json [input]"))
    assert re.search(said, text), text


@pytest.mark.parametrize("prefix", [f"plans/{SURROGATE}", f"{SURROGATE}/x", "../x", "a\0b", "\x1b[2J"])
def test_a_prefix_that_cannot_be_is_refused_and_the_server_goes_on(server: ComfyServer, prefix: str) -> None:
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed"))
    graph["plan"] = node("SaveRoutingPlan", model=["routed", 0], latent=["a.sample", 0], filename_prefix=prefix)
    assert "SaveRoutingPlan" in (text := refused(server, graph)) and "filename_prefix: " in text


LINKED = {
    "../secret.json [input]": r"file: routing plan '\.\./secret\.json' lies outside of",
    SURROGATE: r"routing plan '\\ud800' holds characters that are no text",
    "a\0b": r"is no name of a file",
    "": r"is no name of a file",
    7: r"file: routing plan a name is expected, got int",
}


def given(value: Any) -> dict[str, Any]:
    """A value on an output of any type, which core does not compare with a menu."""
    kind = "PrimitiveInt" if isinstance(value, int) else "PrimitiveString"
    switch = node("ComfySwitchNode", switch=False, on_false=["value", 0], on_true=["value", 0])
    return {"value": node(kind, value=value), "any": switch}


@pytest.mark.parametrize("name", LINKED)
def test_names_that_are_linked_are_checked_as_those_of_menus(server: ComfyServer, name: Any) -> None:
    (server.base_dir / "secret.json").write_text(json.dumps(plain()))
    text = refused(server, routed(["any", 0]) | given(name))
    assert re.search(f"LoadRoutingPlan.*ConductorError: .*{LINKED[name]}", text), text
    graph = world(dual=loader(), **sampled("a", "dual")) | given(name)
    graph["dual"]["inputs"]["subject_lora"] = ["any", 0]
    assert re.search("DualLoRADynamicLoader.*ConductorError: subject LoRA ", text := refused(server, graph)), text
    encoder = node("MetricEncoderLoader", encoder_name=["any", 0], library="auto", model_name="")
    text = refused(server, {**given(name), "encoder": encoder, "shown": node("PreviewAny", source=["encoder", 0])})
    assert re.search("MetricEncoderLoader.*ConductorError: encoder_name: ", text), text


def test_what_comes_by_the_plan_s_socket_must_be_a_plan(server: ComfyServer) -> None:
    graph = routed("none") | given("{}")
    graph["routed"]["inputs"]["plan"] = ["any", 0]
    assert "ConductorError: plan: a str is no routing plan" in refused(server, graph)


def test_a_lora_whose_name_no_encoding_knows_is_refused(server: ComfyServer) -> None:
    folder = server.base_dir / "models" / "loras"
    name = "lora_caf\udce9.safetensors"  # Latin-1 on the disk
    (folder / name).write_bytes((folder / STYLE).read_bytes())
    try:
        text = refused(server, world(dual=loader(style=name), **sampled("a", "dual")))
        assert "style LoRA 'lora_caf\\udce9.safetensors' holds characters that are no text. Rename" in text
    finally:
        (folder / name).unlink()


def test_reports_quote_keys_that_no_encoding_knows(server: ComfyServer) -> None:
    folder = server.base_dir / "models" / "loras"
    odd = {"lora_\ud800\x1b[2J.weight": torch.ones(1)}
    torch.save(safetensors.torch.load((folder / STYLE).read_bytes()) | odd, folder / "odd.pt")
    try:
        graph = world(dual=loader(style="odd.pt"), shown=node("PreviewAny", source=["dual", 2]), **sampled("a", "dual"))
        outputs = run(server, graph)
        text = json.dumps([outputs["dual"], outputs["shown"]], ensure_ascii=False).encode().decode()
        assert text.count("lora_\\\\ud800\\\\x1b[2J") == 2
    finally:
        (folder / "odd.pt").unlink()


MENUS = {"policy": "best", "granularity": "atom", "score": 7}


@pytest.mark.parametrize("menu", MENUS)
def test_values_that_are_linked_to_a_menu_are_on_it(server: ComfyServer, menu: str) -> None:
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed")) | given(MENUS[menu])
    graph["routed"]["inputs"][menu] = ["any", 0]
    text = refused(server, graph)
    assert re.search(f"KLLayerRouter.*ConductorError: {menu}(:| must be one of) ", text), text
