"""The curves of metric guidance on their nodes, in the real page: live, true, kept, beside core's own preview."""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

import pytest

from repo_paths import REPO

from .test_routing_map import load

TEMPLATE = json.loads((REPO / "example_workflows" / "small_world_demo.json").read_text(encoding="utf-8"))
SAMPLER, PLAIN_SAMPLER = 11, 21
STORED = 1e-5  # of a number that a workflow keeps

CURVES = """id => window.app.graph.getNodeById(id)?.widgets?.find(w => w.name === 'guidance_curves')?.value || null"""
# Queues the open workflow; notes how many points there were, and whether core showed a preview on the sampler, whenever
# progress came in.
QUEUE = """async ([id, count]) => {
    const read = CURVES
    const seen = [], reports = [], texts = [], previews = [], api = window.app.api
    const progress = () => { const c = read(id); if (c && !c.finished) seen.push(c.points.length) }
    const preview = e => previews.push(String(e.detail.displayNodeId ?? e.detail.nodeId))
    const executed = ({ detail }) => {
        if (detail.output?.guidance) reports.push(detail.output.guidance[0])
        if (detail.output?.text) texts.push(detail.output.text[0])
    }
    const events = { progress_state: progress, executed, b_preview_with_metadata: preview }
    for (const [name, heard] of Object.entries(events)) api.addEventListener(name, heard)
    let left = count
    const finished = new Promise(resolve => {
        api.addEventListener('execution_success', () => { left -= 1; if (!left) resolve(null) })
        api.addEventListener('execution_error', e => resolve(e.detail.exception_message))
    })
    for (let i = 0; i < count; i++) await window.app.queuePrompt(0)
    const error = await finished
    await new Promise(resolve => setTimeout(resolve, 300))
    for (const [name, heard] of Object.entries(events)) api.removeEventListener(name, heard)
    return { error, seen, reports, texts, previews }
}""".replace("CURVES", CURVES)
# Whether the sampler shows a preview picture: on the canvas it is the node's own, in Nodes 2.0 a page element.
SHOWS_PREVIEW = """id => {
    const node = window.app.graph.getNodeById(id)
    const element = document.querySelector(`[data-node-id="${id}"]`)
    return Boolean(node.imgs?.length) || Boolean(element?.querySelector('img[src^="blob:"]'))
}"""


def workflow(seed: int, *, steps: int = 8, every: int = 1, strength: float = 0.1, batch: int = 1) -> dict[str, Any]:
    made = copy.deepcopy(TEMPLATE)
    made["id"] = str(uuid.uuid4())
    nodes = {node["id"]: node for node in made["nodes"]}
    values = nodes[SAMPLER]["widgets_values"]
    values[:3] = [seed, "fixed", steps]
    values[9], values[10], values[12] = strength, 0.2, every
    nodes[4]["widgets_values"][2] = batch
    return made


def queue(page: Any, count: int = 1) -> dict[str, Any]:
    result = page.evaluate(QUEUE, [SAMPLER, count])
    assert result["error"] is None
    return result


def assert_shows(shown: dict[str, Any] | None, report: dict[str, Any]) -> None:
    """The widget's value is the scores JSON."""
    assert shown is not None and shown["finished"]
    names = [curve["name"] for curve in shown["curves"]]
    assert names == [term["name"] for term in report["terms"] + report["held_out"]]
    assert (shown["steps"], shown["window"]) == (report["steps"], report["window"])
    assert len(shown["points"]) == len(report["evaluations"])
    for point, evaluation in zip(shown["points"], report["evaluations"], strict=True):
        assert point["step"] == evaluation["step"] and point["seconds"] == evaluation["seconds"]
        expected = [mean(evaluation["similarities"][name]) for name in names]
        assert point["values"] == pytest.approx(expected, rel=STORED)
        assert point["displacement"] == pytest.approx(mean(evaluation["displacement_rms"]), rel=STORED)
    assert shown["final"] == pytest.approx([mean(report["final"][name]) for name in names], rel=STORED)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def a_seed() -> int:
    return uuid.uuid4().int % 10**6


def test_fills_while_sampling_beside_the_preview_and_stays_after_a_reload(page: Any, renderer: str) -> None:
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'latent2rgb')")
    load(page, workflow(a_seed(), steps=16), "curves_test")
    assert page.evaluate(CURVES, SAMPLER) is None
    page.evaluate("() => { window.previewShown = false }")
    watching = "id => { setInterval(() => { window.previewShown ||= (SHOWS)(id) }, 50) }"
    watching = watching.replace("SHOWS", SHOWS_PREVIEW)
    page.evaluate(watching, SAMPLER)
    result = queue(page)
    partial = sorted(set(result["seen"]))
    (report,) = result["reports"]
    assert len(report["evaluations"]) == 10
    assert any(0 < n < 10 for n in partial), f"points shown while sampling: {partial}"
    assert str(SAMPLER) in result["previews"], "core sends previews of this node"
    assert page.evaluate("() => window.previewShown"), "core's preview is on the node while the curves are"
    assert json.loads(next(text for text in result["texts"] if "displacement_rms" in text)) == report
    assert_shows(page.evaluate(CURVES, SAMPLER), report)
    page.wait_for_timeout(1500)  # the page saves its draft a moment later
    page.reload()
    page.wait_for_function("() => window.app?.graph?.nodes?.length > 20", timeout=90_000)
    page.wait_for_timeout(1000)
    assert_shows(page.evaluate(CURVES, SAMPLER), report)
    painted = """id => { const { element } = window.app.graph.getNodeById(id).widgets.at(-1)
        const c = element.querySelector('canvas')
        return c.width * c.height && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v) }"""
    assert page.evaluate(painted, SAMPLER)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_two_queued_runs_do_not_mix(page: Any, renderer: str) -> None:
    graph = workflow(a_seed(), every=2, batch=2)
    next(n for n in graph["nodes"] if n["id"] == SAMPLER)["widgets_values"][1] = "increment"
    load(page, graph, "curves_twice")
    first, second = queue(page, count=2)["reports"]
    assert first["evaluations"][-1]["similarities"] != second["evaluations"][-1]["similarities"]
    assert_shows(page.evaluate(CURVES, SAMPLER), second)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_an_unguided_run_takes_the_old_curves_away(page: Any, renderer: str) -> None:
    load(page, workflow(a_seed(), steps=3, strength=0.0), "curves_off")
    queue(page)
    assert page.evaluate(CURVES, SAMPLER) is None, "no widget where there is nothing to show"
    set_strength = """([id, strength]) => { const { widgets } = window.app.graph.getNodeById(id)
        widgets.find(w => w.name === 'guidance_strength').value = strength }"""
    for strength, guided in ((0.2, True), (0.0, False)):
        page.evaluate(set_strength, [SAMPLER, strength])
        queue(page)
        shown = page.evaluate(CURVES, SAMPLER)
        assert shown["guided"] is guided and bool(shown["points"]) is guided


def test_pointing_tells_the_values(page: Any, renderer: str) -> None:
    load(page, workflow(a_seed(), steps=5), "curves_point")
    (report,) = queue(page)["reports"]
    at = """([id, fraction]) => { const { widgets } = window.app.graph.getNodeById(id)
        const root = widgets.find(w => w.name === 'guidance_curves').element
        const canvas = root.querySelector('canvas'), box = canvas.getBoundingClientRect()
        canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: box.x + fraction * box.width,
            clientY: box.y + box.height / 2, bubbles: true }))
        return ['detail', 'legend', 'labels'].map(part => root.querySelector(`.lc-${part}`).textContent) }"""
    detail, legend, labels = page.evaluate(at, [SAMPLER, 0.02])
    assert labels.startswith(f"step 1{report['steps']}")
    first = report["evaluations"][0]
    assert detail.startswith(f"step {first['step'] + 1}: moved {first['displacement_rms'][0]:.4f}"), detail
    for values in first["similarities"].values():
        assert f"{values[0]:.4f}" in legend
    detail, legend, _ = page.evaluate(at, [SAMPLER, 0.99])
    assert detail == "finished picture"
    assert f"{report['final'][report['terms'][0]['name']][0]:.4f}" in legend


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_widget_values_that_go_by_position_stay(page: Any, renderer: str) -> None:
    load(page, workflow(a_seed(), steps=3), "curves_values")
    values = "id => window.app.graph.serialize().nodes.find(n => n.id === id).widgets_values"
    before = page.evaluate(values, SAMPLER)
    queue(page)
    assert page.evaluate(CURVES, SAMPLER) is not None
    assert page.evaluate(values, SAMPLER) == before
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert "guidance_curves" not in prompt[str(SAMPLER)]["inputs"]


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_guidance_report_shows_them_too(page: Any, renderer: str) -> None:
    """Guidance on the model, and a sampler that knows nothing of it."""
    load(page, workflow(a_seed(), steps=4, strength=0.0), "curves_report")
    report = page.evaluate(
        """sampler => {
        const { graph } = window.app, node = id => graph.getNodeById(id)
        const add = type => { const made = window.LiteGraph.createNode(type); graph.add(made); return made }
        const into = (target, name) => target.inputs.findIndex(input => input.name === name)
        const guidance = add('MetricGuidance'), report = add('GuidanceReport')
        node(20).connect(0, guidance, into(guidance, 'model'))
        const sources = { vae: 2, subject_image: 5, style_image: 6, clip_encoder: 7, dino_encoder: 8 }
        for (const [name, id] of Object.entries(sources)) node(id).connect(0, guidance, into(guidance, name))
        guidance.connect(0, node(sampler), into(node(sampler), 'model'))
        guidance.connect(0, report, into(report, 'model'))
        node(sampler).connect(0, report, into(report, 'latent'))
        return report.id
    }""",
        PLAIN_SAMPLER,
    )
    off, guided = sorted(queue(page)["reports"], key=lambda found: found["guided"])
    assert not off["guided"]
    assert guided["evaluations"]
    shown = page.evaluate(CURVES, report)
    assert len(shown["points"]) == len(guided["evaluations"]) and shown["final"] is None
    assert page.evaluate(CURVES, SAMPLER) is None, "the sampler did not guide"
