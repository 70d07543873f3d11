"""The routing map on its nodes, in the real page: it fills while sampling, tells the truth, and stays."""

from __future__ import annotations

import copy
import json
import re
import uuid
from typing import Any

import pytest
import torch

from comfy_server import ComfyServer
from repo_paths import REPO

from ..host.map_reading import decode

TEMPLATE = json.loads((REPO / "example_workflows" / "small_world_demo.json").read_text(encoding="utf-8"))
LOADER, ROUTER, SAMPLER, REPORT = 9, 10, 11, 12
PRECISION = 0.012  # of a number that went through the two-character codes twice

# What a node's map holds, by a node's path ("10", or "40:10" in a subgraph); null where it has none.
MAP = """path => {
    let graph = window.app.rootGraph ?? window.app.graph
    const ids = path.split(':')
    for (const id of ids.slice(0, -1)) graph = graph.getNodeById(id).subgraph
    return graph.getNodeById(ids.at(-1))?.widgets?.find(w => w.name === 'routing_map')?.value || null
}"""
# Queues the open workflow; notes how full the map was whenever a node's progress came in.
QUEUE = """async ([path, count]) => {
    const read = MAP
    const seen = [], records = [], api = window.app.api
    const progress = () => { const m = read(path); if (m && !m.finished) seen.push(Object.keys(m.columns).length) }
    const executed = e => { const r = e.detail.output?.routing?.[0]; if (r) records.push(r) }
    api.addEventListener('progress_state', progress)
    api.addEventListener('executed', executed)
    let left = count
    const finished = new Promise(resolve => {
        const done = () => { left -= 1; if (!left) resolve(null) }
        api.addEventListener('execution_success', done)
        api.addEventListener('execution_error', e => resolve(e.detail.exception_message))
    })
    for (let i = 0; i < count; i++) await window.app.queuePrompt(0)
    const error = await finished
    await new Promise(resolve => setTimeout(resolve, 300))
    api.removeEventListener('progress_state', progress)
    api.removeEventListener('executed', executed)
    return { error, seen, records }
}""".replace("MAP", MAP)


def workflow(*, router: bool = True, seed: int = 2, steps: int = 16) -> dict[str, Any]:
    """The example workflow without guidance, which would take most of the time here."""
    made = copy.deepcopy(TEMPLATE)
    made["id"] = str(uuid.uuid4())
    nodes = {node["id"]: node for node in made["nodes"]}
    # seed, its control, steps ... strengths of clip and dino, ...
    nodes[SAMPLER]["widgets_values"][:3] = [seed, "fixed", steps]
    nodes[SAMPLER]["widgets_values"][7:9] = [0.0, 0.0]
    if not router:
        nodes[ROUTER]["mode"] = 4  # bypassed
    return made


def load(page: Any, graph: dict[str, Any], name: str = "map_test") -> None:
    page.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name)", [graph, name])
    page.wait_for_timeout(500)


def queue(page: Any, path: str, count: int = 1) -> dict[str, Any]:
    result = page.evaluate(QUEUE, [path, count])
    assert result["error"] is None
    return result


def table(shown: dict[str, Any]) -> torch.Tensor:
    """``[4, layers, steps]`` of a map's widget value."""
    columns = {int(step): decode(text) for step, text in shown["columns"].items()}
    assert sorted(columns) == list(range(shown["steps"]))
    return torch.stack([columns[step] for step in sorted(columns)], -1)


def assert_shows(shown: dict[str, Any] | None, record: dict[str, Any]) -> None:
    assert shown is not None and shown["finished"] and shown["layers"] == record["layers"]
    expected = torch.tensor(record["weights"] + record["scores"], dtype=torch.float64)
    assert torch.allclose(table(shown), expected, rtol=PRECISION, atol=1e-11)


def test_fills_while_sampling_and_stays_after_a_reload(page: Any, renderer: str) -> None:
    load(page, workflow(seed=int(torch.randint(1, 10**6, ()))))
    assert page.evaluate(MAP, str(ROUTER)) is None
    result = queue(page, str(ROUTER))
    partial = sorted(set(result["seen"]))
    assert any(0 < n < 16 for n in partial), f"columns shown while sampling: {partial}"
    (record,) = result["records"]
    for node in (ROUTER, REPORT):
        assert_shows(page.evaluate(MAP, str(node)), record)
    assert page.evaluate(MAP, str(LOADER)) is None, "the router shows the map, not the loader before it"
    page.wait_for_timeout(1500)  # the page saves its draft a moment later
    page.reload()
    page.wait_for_function("() => window.app?.graph?.nodes?.length > 20", timeout=90_000)
    page.wait_for_timeout(1000)
    for node in (ROUTER, REPORT):
        assert_shows(page.evaluate(MAP, str(node)), record)
    painted = """id => { const c = window.app.graph.getNodeById(id).widgets.at(-1).element.querySelector('canvas')
        return c.width * c.height && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v) }"""
    assert page.evaluate(painted, ROUTER)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_two_queued_runs_do_not_mix(page: Any, renderer: str) -> None:
    graph = workflow(seed=int(torch.randint(1, 10**6, ())), steps=6)
    next(n for n in graph["nodes"] if n["id"] == SAMPLER)["widgets_values"][1] = "increment"
    load(page, graph)
    result = queue(page, str(ROUTER), count=2)
    first, second = result["records"]
    assert first["scores"] != second["scores"]
    assert_shows(page.evaluate(MAP, str(ROUTER)), second)
    assert_shows(page.evaluate(MAP, str(REPORT)), second)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_the_loader_shows_the_map_when_it_routes_alone(page: Any, renderer: str) -> None:
    load(page, workflow(router=False, steps=4))
    (record,) = queue(page, str(LOADER))["records"]
    assert_shows(page.evaluate(MAP, str(LOADER)), record)
    assert page.evaluate(MAP, str(ROUTER)) is None


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_a_workflow_that_is_not_open_gets_its_map_when_it_is(page: Any, renderer: str, server: ComfyServer) -> None:
    """The other workflow has nodes of the same numbers."""
    mine, other = workflow(seed=77, steps=8), workflow(seed=78, steps=8)
    load(page, mine, "mine")
    page.evaluate("() => window.app.queuePrompt(0)")
    load(page, other, "other")
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        page.wait_for_timeout(100)
    page.wait_for_timeout(500)
    assert page.evaluate(MAP, str(ROUTER)) is None
    load(page, mine, "mine")
    shown = page.evaluate(MAP, str(ROUTER))
    assert shown is not None and shown["finished"] and shown["steps"] == 8


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_copies_undo_and_saved_widget_values(page: Any, renderer: str) -> None:
    load(page, workflow(seed=5, steps=3))
    before = page.evaluate("() => window.app.graph.serialize().nodes.find(n => n.id === 10).widgets_values")
    queue(page, str(ROUTER))
    shown = page.evaluate(MAP, str(ROUTER))
    after = page.evaluate("() => window.app.graph.serialize().nodes.find(n => n.id === 10)")
    assert after["widgets_values"] == before, "the map is not one of the values that go by position"
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert "routing_map" not in prompt[str(ROUTER)]["inputs"]
    copied = """() => { const node = window.app.graph.getNodeById(10), twin = node.clone()
        window.app.graph.add(twin); return twin.id }"""
    twin = page.evaluate(copied)
    assert page.evaluate(MAP, str(twin)) is None, "a copy has not run"
    page.evaluate("id => window.app.graph.remove(window.app.graph.getNodeById(id))", twin)
    page.evaluate("() => { const n = window.app.graph.getNodeById(10); n.collapse(); n.collapse() }")
    page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    page.wait_for_timeout(500)
    assert page.evaluate(MAP, str(ROUTER))["columns"] == shown["columns"]


def test_pointing_tells_and_folding_folds(page: Any, renderer: str) -> None:
    load(page, workflow(seed=int(torch.randint(1, 10**6, ())), steps=4))
    (record,) = queue(page, str(ROUTER))["records"]
    at = """([fx, fy, kind]) => { const { widgets } = window.app.graph.getNodeById(10)
        const root = widgets.find(w => w.name === 'routing_map').element
        const canvas = root.querySelector('canvas'), box = canvas.getBoundingClientRect()
        canvas.dispatchEvent(new PointerEvent(kind, { clientX: box.x + fx * box.width, clientY: box.y + fy * box.height,
            bubbles: true }))
        return root.querySelector('.lc-detail').textContent }"""
    labels = """() => window.app.graph.getNodeById(10).widgets.find(w => w.name === 'routing_map').element
        .querySelector('.lc-labels').textContent"""
    assert page.evaluate(labels).startswith("\u25b8 double 0"), "with many layers, blocks are folded at first"
    page.evaluate(at, [0.02, 0.001, "pointerdown"])
    said = page.evaluate(at, [0.99, 0.001, "pointermove"])
    layer, subject = record["layers"][0].removeprefix("diffusion_model."), record["weights"][0][0][3]
    assert said.startswith(f"{layer}, step 4: weights {subject:.2f} /"), said
    drawn = record["contributions"][0][3]
    assert abs(int(re.search(r"subject draws (\d+) %$", said)[1]) / 100 - drawn) < 0.01, said
    assert page.evaluate(labels).startswith("\u25be double 0")
    page.evaluate(at, [0.02, 0.001, "pointerdown"])
    assert page.evaluate(labels).startswith("\u25b8 double 0")
    assert "layers)" in page.evaluate(at, [0.99, 0.001, "pointermove"])


def test_weights_are_one_click_away(page: Any, renderer: str) -> None:
    """The louder file draws more than its weight: the headline and the colours tell which of both they show."""
    graph = workflow(seed=int(torch.randint(1, 10**6, ())), steps=3)
    nodes = {node["id"]: node for node in graph["nodes"]}
    nodes[ROUTER]["widgets_values"][0] = "kl_soft"
    load(page, graph)
    page.evaluate(SET_WIDGET, [LOADER, "subject_strength", 1.5])
    (record,) = queue(page, str(ROUTER))["records"]
    weights = torch.tensor(record["weights"], dtype=torch.float64)
    of_weights = round(float((weights[0] / weights.sum(0)).mean()) * 100)
    drawn = round(float(torch.tensor(record["contributions"]).mean()) * 100)
    assert abs(of_weights - drawn) >= 3
    assert page.evaluate(SAID, str(ROUTER)).endswith(f"subject {drawn} %")
    painted = """id => { const { element } = window.app.graph.getNodeById(id)
            .widgets.find(w => w.name === 'routing_map')
        const canvas = element.querySelector('canvas')
        return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data].join() }"""
    click = """id => { const { element } = window.app.graph.getNodeById(id).widgets.find(w => w.name === 'routing_map')
        element.querySelector('.lc-kind').click(); return element.querySelector('.lc-kind').textContent }"""
    before = page.evaluate(painted, ROUTER)
    assert page.evaluate(click, ROUTER) == "weights"
    assert page.evaluate(SAID, str(ROUTER)).endswith(f"subject {of_weights} %")
    assert page.evaluate(painted, ROUTER) != before
    assert page.evaluate(click, ROUTER) == "what is drawn"
    assert page.evaluate(SAID, str(ROUTER)).endswith(f"subject {drawn} %")


def test_a_map_of_an_earlier_version_shows_its_weights(page: Any, renderer: str) -> None:
    load(page, workflow(seed=int(torch.randint(1, 10**6, ())), steps=2))
    (record,) = queue(page, str(ROUTER))["records"]
    graph = page.evaluate("() => window.app.graph.serialize()")
    kept = next(node for node in graph["nodes"] if node["id"] == ROUTER)["properties"]["lora_conductor.routing_map"]
    for name in ("loudness", "measured"):
        del kept[name]
    page.evaluate("() => window.app.graph.clear()")
    load(page, graph | {"id": str(uuid.uuid4())})
    weights = torch.tensor(record["weights"], dtype=torch.float64)
    share = round(float((weights[0] / weights.sum(0)).mean()) * 100)
    assert page.evaluate(SAID, str(ROUTER)).endswith(f"subject {share} %")
    hidden = """id => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'routing_map').element
        .querySelector('.lc-kind').hidden"""
    assert page.evaluate(hidden, ROUTER)


SAID = """path => { const node = window.app.graph.getNodeById(path)
    const { element } = node.widgets.find(w => w.name === 'routing_map')
    return element.querySelector('.lc-status').textContent }"""
SET_WIDGET = """([id, name, value]) => { const { widgets } = window.app.graph.getNodeById(id)
    widgets.find(w => w.name === name).value = value }"""


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
@pytest.mark.parametrize("why", ["merged", "no_loras", "one_role"])
def test_a_run_that_routes_nothing_takes_the_old_map_away(page: Any, renderer: str, why: str) -> None:
    graph = workflow(seed=int(torch.randint(1, 10**6, ())), steps=3)
    next(n for n in graph["nodes"] if n["id"] == SAMPLER)["widgets_values"][1] = "increment"
    load(page, graph, f"nothing {why}")
    queue(page, str(ROUTER))
    changes = {
        "merged": [(ROUTER, "policy", "sum")],
        "no_loras": [(LOADER, "subject_lora", "None"), (LOADER, "style_lora", "None")],
        "one_role": [(LOADER, "style_lora", "None")],
    }
    for change in changes[why]:
        page.evaluate(SET_WIDGET, list(change))
    queue(page, str(ROUTER))
    sentences = {
        "merged": "sum is merged before sampling, nothing is routed",
        "no_loras": "no LoRAs, nothing is routed",
        "one_role": "LoRAs of one role only, nothing is routed",
    }
    for node in (ROUTER, REPORT):
        shown = page.evaluate(MAP, str(node))
        assert (shown["layers"], shown["columns"], shown["nothing"]) == ([], {}, why)
        assert page.evaluate(SAID, str(node)) == sentences[why]


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_nothing_to_say_where_no_map_was(page: Any, renderer: str) -> None:
    load(page, workflow(seed=int(torch.randint(1, 10**6, ())), steps=2), "never a map")
    page.evaluate(SET_WIDGET, [ROUTER, "policy", "sum"])
    queue(page, str(ROUTER))
    assert page.evaluate(MAP, str(ROUTER)) is None and page.evaluate(MAP, str(REPORT)) is None


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_a_template_opened_anew_has_no_map(page: Any, renderer: str) -> None:
    """Though the page has seen one of the same template; and going back a step still takes none away."""
    opened = copy.deepcopy(TEMPLATE)
    assert "id" not in opened, "a template has none of its own, so that each opening is a workflow of its own"
    mine = workflow(seed=int(torch.randint(1, 10**6, ())), steps=3)
    opened["nodes"] = mine["nodes"]
    load(page, opened, "template")
    queue(page, str(ROUTER))
    assert page.evaluate(MAP, str(ROUTER)) is not None
    load(page, opened, "template once more")
    assert page.evaluate(MAP, str(ROUTER)) is None
    load(page, mine, "a file")
    queue(page, str(ROUTER))
    load(page, mine, "the file once more")
    assert page.evaluate(MAP, str(ROUTER)) is None, "the file was saved without a map"
