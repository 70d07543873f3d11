"""What the server says of a node, on that node in the real page."""

from __future__ import annotations

import uuid
from typing import Any

from lora_conductor.host.fusing.weights import SUMMED

from .test_routing_map import ROUTER, load, queue, workflow

# A node of core's that takes weights, behind the router; everything that samples is muted.
SAVE = """([router, prefix]) => {
    const { graph } = window.app, node = window.LiteGraph.createNode('ModelSave')
    for (const other of graph.nodes) if (/Sampler|Report|VAEDecode|SaveImage|Preview/.test(other.type)) other.mode = 2
    graph.add(node)
    const from = graph.getNodeById(router)
    node.pos = [from.pos[0], from.pos[1] + from.size[1] + 80]
    node.widgets[0].value = prefix // ComfyUI runs nothing twice
    from.connect(from.outputs.findIndex(output => output.type === 'MODEL'), node, 0)
    return node.id
}"""
SAID = """id => {
    const of_text = widget => widget.name.includes('text-preview')
    return window.app.graph.getNodeById(id).widgets.filter(of_text).map(widget => widget.value).join() }"""
GO_TO = """id => {
    const { canvas, graph } = window.app
    canvas.ds.scale = 1
    canvas.centerOnNode(graph.getNodeById(id))
    canvas.setDirty(true, true) }"""
IN_SIGHT = "text => document.body.innerText.includes(text)"


def test_a_node_that_takes_weights_says_that_it_gets_the_sum(page: Any, renderer: str) -> None:
    load(page, workflow(), "saved weights")
    node = page.evaluate(SAVE, [ROUTER, f"said/{uuid.uuid4().hex}"])
    queue(page, str(ROUTER))
    assert page.evaluate(SAID, node) == SUMMED
    page.evaluate(GO_TO, node)
    page.wait_for_timeout(1000)
    assert renderer == "LiteGraph" or page.evaluate(IN_SIGHT, SUMMED[:40])
