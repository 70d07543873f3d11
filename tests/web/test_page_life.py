"""What users do to the page while and after a run: other themes, lost connections, dropped files, copies, zooming."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from comfy_server import ComfyServer
from repo_paths import REPO

from .test_guidance_curves import CURVES
from .test_guidance_curves import workflow as guided_workflow
from .test_report_text import TEXT
from .test_routing_map import MAP, REPORT, ROUTER, SAMPLER, assert_shows, load, queue, table, workflow

PAINTED = """([id, name]) => {
    const { element } = window.app.graph.getNodeById(id).widgets.find(w => w.name === name)
    const c = element.querySelector('canvas'), text = getComputedStyle(element).color
    return [text, c.width, c.toDataURL()] }"""
DROP = """async ([text, name]) => {
    const canvas = window.app.canvas.canvas, box = canvas.getBoundingClientRect()
    const data = new DataTransfer()
    data.items.add(new File([text], name, { type: 'application/json' }))
    const at = { dataTransfer: data, bubbles: true, cancelable: true,
        clientX: box.x + box.width - 40, clientY: box.y + box.height - 200 }
    for (const kind of ['dragenter', 'dragover', 'drop']) canvas.dispatchEvent(new DragEvent(kind, at))
}"""
START = "async () => { await window.app.queuePrompt(0) }"


def a_seed() -> int:
    return uuid.uuid4().int % 10**6


def shown_columns(page: Any) -> int:
    shown = page.evaluate(MAP, str(ROUTER))
    return 0 if shown is None else len(shown["columns"])


def wait_until(page: Any, condition: Any, what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        page.wait_for_timeout(50)


def record_of(server: ComfyServer, prompt: str) -> dict[str, Any]:
    """A run's routing record, from the server's history."""
    return server.get(f"/history/{prompt}")[prompt]["outputs"][str(REPORT)]["routing"][0]


def settled(page: Any, places: list[Any]) -> list[list[Any]]:
    """What is painted at the places, once half a second changes nothing of it: colours fade from theme to theme."""
    seen: list[Any] = []

    def still() -> bool:
        seen.append([page.evaluate(PAINTED, place) for place in places])
        if len(seen) > 1 and seen[-1] == seen[-2]:
            return True
        page.wait_for_timeout(500)
        return False

    wait_until(page, still, "the page comes to rest")
    return seen[-1]


def test_another_theme_repaints(page: Any, renderer: str) -> None:
    load(page, guided_workflow(a_seed(), steps=4), "themes")
    queue(page, str(ROUTER))
    places = [[ROUTER, "routing_map"], [11, "guidance_curves"]]
    set_theme = "name => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)"
    before = settled(page, places)
    try:
        page.evaluate(set_theme, "light")
        page.wait_for_timeout(500)
        after = settled(page, places)
    finally:
        page.evaluate(set_theme, "dark")
        page.wait_for_timeout(500)
    for (text, width, pixels), (new_text, new_width, new_pixels) in zip(before, after, strict=True):
        assert text != new_text, "the page changed its colours"
        assert width == new_width and pixels != new_pixels, "the painted part follows them"
    assert settled(page, places) == before


def test_socket_lost_in_the_middle_of_a_run(page: Any, renderer: str, server: ComfyServer) -> None:
    load(page, workflow(seed=a_seed(), steps=80), "socket")
    page.evaluate("""() => { window.ticks = 0; const tick = () => { window.ticks += 1; requestAnimationFrame(tick) }
        tick() }""")
    page.evaluate(START)
    wait_until(page, lambda: shown_columns(page) > 0, "the map began")
    before = page.evaluate("() => { window.app.api.socket.close(); return window.ticks }")
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.ticks") > before, "the page goes on drawing"
    wait_until(page, lambda: not server.get("/prompt")["exec_info"]["queue_remaining"], "the run is over")
    page.wait_for_timeout(1000)
    record = record_of(server, page.evaluate(MAP, str(ROUTER))["prompt"])
    for node in (ROUTER, REPORT):
        assert_shows(page.evaluate(MAP, str(node)), record)


def reload_page(page: Any, nodes: int) -> None:
    page.wait_for_timeout(1500)  # the page saves its draft a moment later
    page.reload()
    page.wait_for_function(f"() => window.app?.graph?.nodes?.length === {nodes}", timeout=90_000)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_reloaded_in_the_middle_of_a_run(page: Any, renderer: str, server: ComfyServer) -> None:
    graph = guided_workflow(a_seed(), steps=90, every=2)
    load(page, graph, "reloaded")
    page.evaluate(START)
    wait_until(page, lambda: shown_columns(page) > 0, "the map began")
    reload_page(page, len(graph["nodes"]))
    wait_until(page, lambda: 0 < shown_columns(page) < 90, "the map goes on", 20)
    assert server.get("/prompt")["exec_info"]["queue_remaining"], "while the run does"
    wait_until(page, lambda: page.evaluate(CURVES, SAMPLER) is not None, "the curves go on")
    assert not page.evaluate(CURVES, SAMPLER)["finished"]
    wait_for_the_server(page, server)
    page.wait_for_timeout(1000)
    record = record_of(server, page.evaluate(MAP, str(ROUTER))["prompt"])
    for node in (ROUTER, REPORT):
        assert_shows(page.evaluate(MAP, str(node)), record)
    assert page.evaluate(CURVES, SAMPLER)["finished"]


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_a_run_that_ended_while_the_page_was_reloaded(page: Any, renderer: str, server: ComfyServer) -> None:
    graph = workflow(seed=a_seed(), steps=12)
    load(page, graph, "reloaded late")
    page.wait_for_timeout(1500)
    page.evaluate(START)
    page.goto("about:blank")
    wait_for_the_server(page, server)
    page.goto(server.url)
    page.wait_for_function(f"() => window.app?.graph?.nodes?.length === {len(graph['nodes'])}", timeout=90_000)
    wait_until(page, lambda: page.evaluate(MAP, str(REPORT)) is not None, "the map is there", 10)
    record = record_of(server, page.evaluate(MAP, str(ROUTER))["prompt"])
    for node in (ROUTER, REPORT):
        assert_shows(page.evaluate(MAP, str(node)), record)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_an_interrupted_run_says_so(page: Any, renderer: str, server: ComfyServer) -> None:
    graph = guided_workflow(a_seed(), steps=100)
    load(page, graph, "interrupted")
    page.evaluate(START)
    wait_until(page, lambda: page.evaluate(CURVES, SAMPLER) is not None, "the curves began")
    server.interrupt()
    wait_for_the_server(page, server)
    page.wait_for_timeout(500)

    def says_so() -> None:
        for panel, node in (("routing_map", ROUTER), ("guidance_curves", SAMPLER)):
            element = f"window.app.graph.getNodeById({node}).widgets.find(w => w.name === '{panel}').element"
            said = page.evaluate(f"() => {element}.querySelector('.lc-status').textContent")
            assert "interrupted" in said and " of 100" in said, said

    says_so()
    reload_page(page, len(graph["nodes"]))
    page.wait_for_timeout(1000)
    says_so()


@pytest.fixture
def cut(page: Any) -> Iterator[Callable[[str], None]]:
    """Has the page's connection cut by its next event of a kind, until the test's `mend`, or its end."""
    # By the page itself: a slow one works off many events between two looks from outside.
    yield lambda event: page.evaluate(
        """event => { window.RealSocket ??= window.WebSocket
        window.app.api.addEventListener(event, () => {
            window.WebSocket = class extends window.RealSocket {
                constructor() { super(`ws://${location.host}/nowhere`) } }
            window.app.api.socket.close()
        }, { once: true }) }""",
        event,
    )
    mend(page)


def mend(page: Any) -> None:
    page.evaluate("() => { window.WebSocket = window.RealSocket ?? window.WebSocket }")


def wait_for_the_server(page: Any, server: ComfyServer) -> None:
    wait_until(page, lambda: not server.get("/prompt")["exec_info"]["queue_remaining"], "the run is over")


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_socket_lost_until_the_run_is_over(
    page: Any, renderer: str, server: ComfyServer, cut: Callable[[str], None]
) -> None:
    load(page, guided_workflow(a_seed(), steps=16), "socket until the end")
    cut("lora_conductor.guidance")
    page.evaluate(START)
    wait_until(page, lambda: page.evaluate(CURVES, SAMPLER) is not None, "the curves began")
    wait_for_the_server(page, server)
    assert not page.evaluate(CURVES, SAMPLER)["finished"]
    assert not page.evaluate(MAP, str(ROUTER))["finished"]
    mend(page)
    for panel, node in ((CURVES, SAMPLER), (MAP, str(ROUTER)), (MAP, str(REPORT))):
        wait_until(page, lambda p=panel, n=node: (page.evaluate(p, n) or {}).get("finished"), "full after reconnecting")
    record = record_of(server, page.evaluate(MAP, str(REPORT))["prompt"])
    for node in (ROUTER, REPORT):
        assert_shows(page.evaluate(MAP, str(node)), record)
    assert page.evaluate(TEXT, REPORT) is not None


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_socket_lost_for_two_runs_without_a_report(
    page: Any, renderer: str, server: ComfyServer, cut: Callable[[str], None]
) -> None:
    """What core's sampler did is in no output; of the second run the page did not hear a word."""
    graph = workflow(seed=a_seed(), steps=12)
    nodes = {node["id"]: node for node in graph["nodes"]}
    nodes[SAMPLER]["widgets_values"][1] = "increment"
    nodes[REPORT]["mode"] = 4  # bypassed
    load(page, graph, "two runs")
    cut("lora_conductor.routing")
    page.evaluate("async () => { await window.app.queuePrompt(0); await window.app.queuePrompt(0) }")
    wait_until(page, lambda: page.evaluate(MAP, str(ROUTER)) is not None, "the map began")
    first = page.evaluate(MAP, str(ROUTER))
    wait_for_the_server(page, server)
    assert page.evaluate(MAP, str(ROUTER))["run"] == first["run"]
    mend(page)
    wait_until(page, lambda: page.evaluate(MAP, str(ROUTER))["finished"], "the map is full after reconnecting")
    shown = page.evaluate(MAP, str(ROUTER))
    assert shown["prompt"] == list(server.get("/history"))[-1] != first["prompt"]
    assert table(shown).shape[-1] == 12


def test_a_dropped_file_runs_and_fills_the_map(page: Any, renderer: str) -> None:
    load(page, {"nodes": [], "links": [], "version": 0.4}, "empty")
    graph = workflow(seed=a_seed(), steps=16)
    page.evaluate(DROP, [json.dumps(graph), "dropped.json"])
    wait_until(page, lambda: page.evaluate("() => window.app.graph.nodes.length") == len(graph["nodes"]), "it opened")
    page.wait_for_timeout(500)
    result = queue(page, str(ROUTER))
    assert any(0 < n < 16 for n in result["seen"]), "the map fills while sampling"
    assert_shows(page.evaluate(MAP, str(ROUTER)), result["records"][0])


TEMPLATES = sorted((REPO / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_template_opens_when_dropped(page: Any, renderer: str, path: Any) -> None:
    load(page, {"nodes": [], "links": [], "version": 0.4}, "empty")
    text = path.read_text(encoding="utf-8")
    page.evaluate(DROP, [text, path.name])
    types = "() => window.app.graph.nodes.map(node => node.type).sort()"
    expected = sorted(node["type"] for node in json.loads(text)["nodes"])
    wait_until(page, lambda: page.evaluate(types) == expected, "all its nodes are there", 15)


def test_copied_and_pasted_collapsed_and_zoomed_out(page: Any, renderer: str) -> None:
    load(page, workflow(seed=a_seed(), steps=6), "life")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.evaluate("() => { window.app.canvas.ds.scale = 0.08; window.app.canvas.setDirty(true, true) }")
    page.evaluate("id => window.app.graph.getNodeById(id).collapse()", ROUTER)
    (record,) = queue(page, str(ROUTER))["records"]
    assert_shows(page.evaluate(MAP, str(ROUTER)), record)
    page.evaluate("id => window.app.graph.getNodeById(id).collapse()", ROUTER)
    page.evaluate("() => { window.app.canvas.ds.scale = 1 }")
    page.evaluate("id => window.app.canvas.centerOnNode(window.app.graph.getNodeById(id))", ROUTER)
    page.wait_for_timeout(700)
    height = """id => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'routing_map').element
        .querySelector('canvas').getBoundingClientRect().height"""
    assert page.evaluate(height, ROUTER) > 50, "visible again"
    ids = "() => window.app.graph.nodes.filter(n => n.type === 'KLLayerRouter').map(n => n.id)"
    page.evaluate(
        """id => { const { canvas, graph } = window.app, node = graph.getNodeById(id)
        canvas.deselectAll?.(); canvas.select?.(node); canvas.copyToClipboard([node]); canvas.pasteFromClipboard() }""",
        ROUTER,
    )
    page.wait_for_timeout(500)
    twins = [number for number in page.evaluate(ids) if str(number) != str(ROUTER)]
    assert len(twins) == 1 and page.evaluate(MAP, str(twins[0])) is None, "what was pasted has not run"
    page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    wait_until(page, lambda: len(page.evaluate(ids)) == 1, "undone", 10)
    assert_shows(page.evaluate(MAP, str(ROUTER)), record)
    assert errors == []
