"""What most users leave alone is folded away on the canvas; nothing that is saved or sent depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .test_routing_map import MAP, REPORT, ROUTER, SAMPLER, SET_WIDGET, load, queue, workflow

SEEN = """id => { const node = window.app.graph.getNodeById(id)
    return node.widgets.filter(w => node.isWidgetVisible(w) && !w.disabled).map(w => w.name) }"""
MORE = """id => { const { widgets } = window.app.graph.getNodeById(id)
    widgets.find(w => w.name === 'lora_conductor_more').callback() }"""
CHOOSE = """([id, policy]) => { const widget = window.app.graph.getNodeById(id).widgets.find(w => w.name === 'policy')
    widget.value = policy; widget.callback(policy) }"""
SAVED = "id => window.app.graph.serialize().nodes.find(n => String(n.id) === String(id))"
HEIGHTS = "ids => ids.map(id => window.app.graph.getNodeById(id).size[1])"


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_shows_what_acts_and_what_was_changed(page: Any, renderer: str) -> None:
    graph = workflow()
    load(page, graph, "folding")
    assert page.evaluate(SEEN, ROUTER) == ["policy", "balance", "emphasis", "lora_conductor_more"]
    (height,) = page.evaluate(HEIGHTS, [ROUTER])
    page.evaluate(MORE, ROUTER)
    assert {"score", "granularity", "freeze_after"} < set(page.evaluate(SEEN, ROUTER))
    assert "temperature" not in page.evaluate(SEEN, ROUTER), "recommended does not have it"
    assert page.evaluate(HEIGHTS, [ROUTER])[0] > height + 200
    page.evaluate(SET_WIDGET, [ROUTER, "floor", 0.3])
    page.evaluate(MORE, ROUTER)
    assert page.evaluate(SEEN, ROUTER) == ["policy", "balance", "floor", "emphasis", "lora_conductor_more"]
    page.evaluate(CHOOSE, [ROUTER, "kl_soft"])
    assert "temperature" in page.evaluate(SEEN, ROUTER)
    page.evaluate(CHOOSE, [ROUTER, "sum"])
    assert page.evaluate(SEEN, ROUTER) == ["policy", "emphasis", "lora_conductor_more"]
    page.evaluate(CHOOSE, [ROUTER, "ties"])
    assert page.evaluate(SEEN, ROUTER) == ["policy", "lora_conductor_more"]


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_is_remembered_and_changes_nothing_that_is_saved(page: Any, renderer: str) -> None:
    graph = workflow()
    saved = {node["id"]: node["widgets_values"] for node in graph["nodes"] if node["id"] in (ROUTER, SAMPLER)}
    load(page, graph, "folding saved")
    page.evaluate(MORE, ROUTER)
    for node, values in saved.items():
        assert page.evaluate(SAVED, node)["widgets_values"][: len(values)] == values
    load(page, page.evaluate("() => window.app.graph.serialize()"), "folding again")
    assert "score" in page.evaluate(SEEN, ROUTER), "unfolded, as it was saved"
    assert "decoder" not in page.evaluate(SEEN, SAMPLER)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert "score" in prompt[str(ROUTER)]["inputs"] and "lora_conductor_more" not in prompt[str(ROUTER)]["inputs"]


def test_nothing_grows_when_a_step_is_taken_back(page: Any, renderer: str) -> None:
    load(page, workflow(seed=int(torch.randint(1, 10**6, ())), steps=3), "growth")
    queue(page, str(ROUTER))
    nodes = [ROUTER, SAMPLER, REPORT]
    before = page.evaluate(HEIGHTS, nodes)
    for _ in range(2):
        page.evaluate("""() => { const { canvas, graph } = window.app
            canvas.emitBeforeChange?.(); graph.getNodeById(4).title += '.'; canvas.emitAfterChange?.() }""")
        page.wait_for_timeout(300)
        page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
        page.wait_for_timeout(1000)
        assert page.evaluate(MAP, str(ROUTER)) is not None
        assert page.evaluate(HEIGHTS, nodes) == pytest.approx(before, abs=1)
