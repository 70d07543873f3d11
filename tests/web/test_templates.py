"""Every template in the real page: all nodes known, all links whole, all values allowed, nothing on top of anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import screenshots
from repo_paths import REPO

TEMPLATES = sorted((REPO / "example_workflows").glob("*.json"))
# Choices among the user's own files, which are not here.
FILES = {
    "ckpt_name",
    "unet_name",
    "vae_name",
    "clip_name",
    "clip_name1",
    "clip_name2",
    "control_net_name",
    "subject_lora",
    "style_lora",
    "lora_name",
    "encoder_name",
    "image",
}
LOOK = """() => window.app.graph.nodes.map(node => ({
    id: node.id,
    type: node.type,
    known: node.type in window.LiteGraph.registered_node_types,
    box: [...node.pos, ...node.size],
    inputs: (node.inputs ?? []).map(input => ({ name: input.name, type: input.type, link: input.link })),
    widgets: (node.widgets ?? []).map(w => ({
        name: w.name, value: w.value, min: w.options?.min, max: w.options?.max,
        values: Array.isArray(w.options?.values) ? w.options.values : null,
    })),
}))"""
LINKS = "() => [...window.app.graph.links.values()].map(link => [link.id, link.origin_id, link.target_id])"


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def template(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(Path(request.param).read_text(encoding="utf-8"))


def test_opens_whole(page: Any, template: dict[str, Any]) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", template)
    page.wait_for_timeout(1000)
    nodes, links = page.evaluate(LOOK), page.evaluate(LINKS)
    assert [node["type"] for node in nodes if not node["known"]] == [], "missing nodes"
    # As text: newer pages have text for node numbers.
    expected = {(str(number), str(source), str(target)) for number, source, _, target, *_ in template["links"]}
    assert {tuple(map(str, link)) for link in links} == expected
    wrong = [
        (node["type"], widget["name"], widget["value"])
        for node in nodes
        for widget in node["widgets"]
        if widget["name"] not in FILES and not allowed(widget)
    ]
    assert wrong == []
    saved = {str(node["id"]): node for node in template["nodes"]}
    for node in nodes:
        linked = {entry["name"] for entry in saved[str(node["id"])]["inputs"] if entry["link"] is not None}
        assert {entry["name"] for entry in node["inputs"] if entry["link"] is not None} == linked


def allowed(widget: dict[str, Any]) -> bool:
    value = widget["value"]
    if widget["values"] is not None:
        return value in widget["values"]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return widget["min"] is None or widget["min"] <= value <= widget["max"]
    return True


def on_top(page: Any) -> list[tuple[str, str]]:
    """Pairs of nodes that lie on each other."""
    boxes = [(node["type"], *node["box"]) for node in page.evaluate(LOOK)]
    title = 30  # above a node's position
    return [
        (a, b)
        for i, (a, ax, ay, aw, ah) in enumerate(boxes)
        for b, bx, by, bw, bh in boxes[i + 1 :]
        if ax < bx + bw and bx < ax + aw and ay - title < by + bh and by - title < ay + ah
    ]


def test_nothing_lies_on_anything_when_the_page_has_drawn_it(page: Any, template: dict[str, Any]) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", template)
    page.wait_for_timeout(1500)
    assert on_top(page) == []
    if not any(node["type"] == "EmojiWorldPrompt" for node in template["nodes"]):
        return  # the user's own files
    # Maps and curves come with the first run, and the pictures.
    short = "() => window.app.graph.nodes.forEach(n => n.widgets?.forEach(w => { if (w.name === 'steps' "
    page.evaluate(short + "&& typeof w.value === 'number') w.value = 4 }))")
    screenshots.start_workflow(page)
    assert page.evaluate("() => window.endOfRun()") is None
    page.wait_for_timeout(1000)
    assert on_top(page) == []
