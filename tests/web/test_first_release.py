"""A workflow saved by the first release: every later one finds each value in the widget it was meant for.

The fixture has the nodes, sockets and widget values of the first release's example workflow, position by position, with
values that tell one widget from the next. It never changes.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from comfy_server import ComfyServer
from repo_paths import REPO

from .test_routing_map import load

FIXTURE = REPO / "tests" / "fixtures" / "first_release.json"
SAVED: dict[str, dict[str, Any]] = {
    "DualLoRADynamicLoader": {
        "subject_lora": "lora_subject_fox.safetensors",
        "style_lora": "lora_style_openmoji.safetensors",
        "subject_strength": 0.9,
        "style_strength": 0.8,
        "subject_clip_strength": 0.7,
        "style_clip_strength": 0.6,
    },
    "KLLayerRouter": {"policy": "kl_soft", "temperature": 0.7, "balance": 0.3},
    "MetricGuidedSampler": {
        "seed": 7,
        "steps": 6,
        "cfg": 2.6,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 0.95,
        "subject_strength": 1.1,
        "style_strength": 0.85,
        "guidance_strength": 0.15,
        "guidance_start": 0.25,
        "guidance_end": 0.75,
        "guidance_every": 2,
    },
}
WIDGETS = """() => Object.fromEntries(window.app.graph.nodes.map(node =>
    [node.type, Object.fromEntries((node.widgets ?? []).map(w => [w.name, w.value]))]))"""
RUN = """async () => {
    const ended = new Promise(resolve => {
        window.app.api.addEventListener('execution_success', () => resolve(null), { once: true })
        window.app.api.addEventListener('execution_error', e => resolve(e.detail.exception_message), { once: true })
    })
    const sent = (await window.app.graphToPrompt()).output
    await window.app.queuePrompt(0)
    return [await ended, sent]
}"""


def test_every_value_lands_in_its_widget_and_it_runs(page: Any, renderer: str, server: ComfyServer) -> None:
    graph = json.loads(FIXTURE.read_text(encoding="utf-8"))
    graph["id"] = str(uuid.uuid4())
    load(page, graph, "first_release")
    widgets = page.evaluate(WIDGETS)
    definitions = server.object_info()
    for node_type, saved in SAVED.items():
        sections = definitions[node_type]["input"]
        inputs = {**sections["required"], **sections.get("optional", {})}
        for name, (kind, *options) in inputs.items():
            if name in saved:
                assert widgets[node_type][name] == pytest.approx(saved[name]), (node_type, name)
            elif kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                default = options[0].get("default", (options[0].get("options") or [None])[0])
                assert widgets[node_type][name] == default, f"{node_type}: {name} came later and takes its default"
    error, sent = page.evaluate(RUN)
    assert error is None
    ours = {node["class_type"]: node["inputs"] for node in sent.values() if node["class_type"] in SAVED}
    for node_type, saved in SAVED.items():
        assert {name: ours[node_type][name] for name in saved} == pytest.approx(saved)
        linked = {name for name, value in ours[node_type].items() if isinstance(value, list)}
        (node,) = [n for n in graph["nodes"] if n["type"] == node_type]
        assert linked == {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
