"""The templates in an install from the registry: packed files, no models, no LoRAs. What a new user sees on opening."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import screenshots
from archive import ArchiveError, archived
from bootstrap_frontend import frontend_args
from comfy_server import ComfyServer
from host_base import make_base
from repo_paths import REPO

try:
    PACKED = archived()
except ArchiveError:
    PACKED = []
TEMPLATES = [path for path in PACKED if path.parts[0] == "example_workflows" and path.suffix == ".json"]
RED = """() => window.app.graph.nodes
    .filter(node => node.has_errors || !(node.type in window.LiteGraph.registered_node_types))
    .map(node => [node.type, ...node.widgets.map(widget => String(widget.value))])"""
OFFERED = """() => [...document.querySelectorAll('button')]
    .map(button => /^Download (.+\\.safetensors)$/.exec(button.getAttribute('aria-label') ?? '')?.[1])
    .filter(Boolean)"""
DIALOG = "() => [...document.querySelectorAll('[role=dialog]')].map(dialog => dialog.innerText).join()"
BOXES = """() => [...document.querySelectorAll('[data-node-id]')].map(element => {
    const { left, top, right, bottom } = element.getBoundingClientRect()
    return [element.dataset.nodeId, left, top, right, bottom] })"""


@pytest.fixture(scope="module")
def bare(host: Any, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a ComfyUI that has the packed files and core's example picture, and nothing else."""
    if not PACKED:
        pytest.skip("not a git checkout")
    base = make_base(tmp_path_factory.mktemp("bare"), pack=False, world=False)
    for file in PACKED:
        target = base / "custom_nodes" / "lora-conductor" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / file, target)
    shutil.copy2(host.path / "input" / "example.png", base / "input" / "example.png")
    screenshots.prepare_settings(base)
    with ComfyServer(host.path, base, frontend_args()) as server:
        names = {Path(file).stem for file in TEMPLATES}
        assert set(server.get("/workflow_templates")["lora-conductor"]) == names
        with screenshots.open_page(server) as page:
            yield page


@pytest.fixture(params=screenshots.RENDERERS)
def drawing(request: pytest.FixtureRequest, bare: Any) -> str:
    screenshots.use_renderer(bare, request.param)
    return request.param


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_opens_with_nothing_red_of_ours_and_offers_what_is_missing(bare: Any, drawing: str, path: Path) -> None:
    template = json.loads((REPO / path).read_text(encoding="utf-8"))
    template["id"] = str(uuid.uuid4())  # opened anew in each renderer
    expected = sorted(f["name"] for node in template["nodes"] for f in node["properties"].get("models", []))
    errors: list[str] = []
    bare.on("pageerror", lambda error: errors.append(str(error)))
    bare.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name)", [template, path.stem])
    bare.wait_for_timeout(1500)
    red = bare.evaluate(RED)
    # Of core's loaders, and those alone whose file is not here; ours and all others are as they should be.
    assert all(set(values) & set(expected) for _, *values in red), red
    assert offered(bare, expected) == expected
    assert errors == []
    if drawing == "Nodes 2.0":
        assert on_top(bare) == []


def offered(page: Any, expected: list[str]) -> list[str]:
    """Names that core's page offers for download: in its side panel, or in the dialog of older ones."""
    details = page.get_by_text("View details")
    if details.count():
        details.first.click()
    found: list[str] = []
    for _ in range(20):
        page.wait_for_timeout(250)
        dialog = page.evaluate(DIALOG)
        found = sorted(page.evaluate(OFFERED)) or sorted(n for n in expected if n in dialog and "Download" in dialog)
        if found == expected:
            break
    page.keyboard.press("Escape")
    return found


def on_top(page: Any) -> list[tuple[str, str]]:
    """Pairs of nodes whose elements lie on each other, by the numbers of the nodes."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1200)
    boxes = page.evaluate(BOXES)
    assert len(boxes) == page.evaluate("() => window.app.graph.nodes.length")
    return [
        (a, b)
        for (a, al, at, ar, ab), (b, bl, bt, br, bb) in combinations(boxes, 2)
        if al < br - 1 and bl < ar - 1 and at < bb - 1 and bt < ab - 1
    ]
