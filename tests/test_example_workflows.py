"""Every example workflow: its drawing is sound, and the running ComfyUI runs it to the end."""

from __future__ import annotations

import json
import urllib.request
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from comfy_server import ComfyServer
from repo_paths import REPO

WORKFLOWS = sorted((REPO / "example_workflows").glob("*.json"))
TITLE = 30  # a node's title bar lies above its position
PAGE_ONLY = {"MarkdownNote", "Note"}  # known to the page alone


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(Path(request.param).read_text(encoding="utf-8"))


def to_api(workflow: dict[str, Any], definitions: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """API format of a drawing without subgraphs, as the page makes it: widget values by position."""
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in PAGE_ONLY:
            continue
        definition, values = definitions[node["type"]], iter(node["widgets_values"])
        linked = {entry["name"]: origin[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
        inputs: dict[str, Any] = {}
        for section in ("required", "optional"):
            for name in definition["input_order"].get(section, []):
                kind, *options = definition["input"][section][name]
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    value = next(values, None)
                    if value is None and section == "optional":
                        continue  # saved before the node had this widget: the page takes its default
                    inputs[name] = value
                    # The page adds a widget to seeds and one to uploads.
                    if options and any(options[0].get(k) for k in ("control_after_generate", "image_upload")):
                        next(values)
        left = list(values)
        # The preview node's own widgets belong to the page.
        assert not left or node["type"] == "PreviewAny", f"{node['type']} has more widget values than widgets: {left}"
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs | linked}
    return graph


def test_drawing_is_tidy(workflow: dict[str, Any]) -> None:
    boxes = [(n["type"], *n["pos"], *n["size"]) for n in workflow["nodes"]]
    for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in combinations(boxes, 2):
        apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - TITLE or by + bh <= ay - TITLE
        assert apart, f"{a} and {b} overlap"
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        for name, nx, ny, nw, nh in boxes:
            inside = x <= nx and nx + nw <= x + width and y <= ny - TITLE and ny + nh <= y + height
            outside = nx + nw <= x or nx >= x + width or ny + nh <= y or ny - TITLE >= y + height
            assert inside or outside, f"{name} lies across the edge of '{group['title']}'"


def test_links_agree_with_the_nodes(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, out, target, into, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][out]["links"] and nodes[target]["inputs"][into]["link"] == link
        assert nodes[source]["outputs"][out]["type"] == kind


def drawn_here(path: Path) -> bool:
    """Whether the small world's models stand in for the user's."""
    return "EmojiWorldPrompt" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", list(filter(drawn_here, WORKFLOWS)), ids=lambda path: path.stem)
def test_runs_to_the_end(server: ComfyServer, path: Path) -> None:
    graph = to_api(json.loads(path.read_text(encoding="utf-8")), server.object_info())
    outputs = server.queue(graph, timeout=300)["outputs"]
    pictures = [server.view(image) for output in outputs.values() for image in output.get("images", ())]
    # A replayed plan gives the same picture bit for bit; all others are pictures of their own.
    expected = {"save_and_replay_a_plan": 1}.get(path.stem, len(pictures))
    assert pictures and len(set(pictures)) == expected


def test_template_browser_finds_them_with_their_thumbnails(server: ComfyServer) -> None:
    assert WORKFLOWS
    assert set(server.get("/workflow_templates")["lora-conductor"]) == {path.stem for path in WORKFLOWS}
    for path in WORKFLOWS:
        address = f"{server.url}/api/workflow_templates/lora-conductor/{path.stem}"
        for suffix in (".json", ".jpg"):
            with urllib.request.urlopen(address + suffix) as answer:
                assert answer.read() == path.with_suffix(suffix).read_bytes()
