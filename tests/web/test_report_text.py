"""Reports in words on the nodes that make them: folded at first, as the output has them, kept with the workflow."""

from __future__ import annotations

import uuid
from typing import Any

from comfy_server import ComfyServer

from .test_routing_map import LOADER, REPORT, ROUTER, load, queue, workflow

TEXT = """id => window.app.graph.getNodeById(id)?.widgets?.find(w => w.name === 'report_text')?.value?.text ?? null"""
LOOKS = """id => { const { element } = window.app.graph.getNodeById(id).widgets.find(w => w.name === 'report_text')
    const text = element.querySelector('.lc-text')
    return [text.getBoundingClientRect().height > 20, text.textContent] }"""
TOGGLE = """id => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'report_text')
    .element.querySelector('.lc-head').click()"""


def test_says_what_the_output_says_and_stays(page: Any, renderer: str, server: ComfyServer) -> None:
    graph = workflow(seed=uuid.uuid4().int % 10**6, steps=3)
    # Not what ran before: nodes that the server remembers say nothing.
    next(n for n in graph["nodes"] if n["id"] == LOADER)["widgets_values"][2] = 0.5 + uuid.uuid4().int % 1000 / 2000
    load(page, graph, "report")
    assert page.evaluate(TEXT, REPORT) is None
    queue(page, str(ROUTER))
    shown = {node: page.evaluate(TEXT, node) for node in (LOADER, REPORT)}
    previews = [
        out["text"][0] for out in list(server.get("/history").values())[-1]["outputs"].values() if "text" in out
    ]
    for node, text in shown.items():
        assert previews.count(text) == 2, f"node {node}: its own, and that of the node that shows its output"
    for is_open in (False, True, False):
        assert page.evaluate(LOOKS, REPORT) == [is_open, shown[REPORT]]
        page.evaluate(TOGGLE, REPORT)
        page.wait_for_timeout(400)
    page.wait_for_timeout(1500)  # the page saves its draft a moment later
    page.reload()
    page.wait_for_function("() => window.app?.graph?.nodes?.length > 20", timeout=90_000)
    page.wait_for_timeout(1000)
    assert {node: page.evaluate(TEXT, node) for node in shown} == shown
