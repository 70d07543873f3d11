"""Our nodes inside subgraphs: the blueprint, and the routing map of a router that lies in one."""

from __future__ import annotations

import json
import uuid
from typing import Any

import torch

from comfy_server import ComfyServer
from repo_paths import REPO

from .test_routing_map import MAP, ROUTER, assert_shows, load, queue, workflow

BLUEPRINT = REPO / "subgraphs" / "Subject x Style.json"
EXPOSED = ["subject_lora", "style_lora", "subject_strength", "style_strength", "policy", "balance"]
INTO_SUBGRAPH = """ids => {
    const { graph } = window.app
    const { subgraph, node } = graph.convertToSubgraph(new Set(ids.map(id => graph.getNodeById(id))))
    return `${node.id}:${subgraph.nodes.find(n => n.type === 'KLLayerRouter').id}`
}"""


def test_server_offers_the_blueprint(server: ComfyServer) -> None:
    offered = [entry for entry in server.get("/global_subgraphs").values() if entry["name"] == BLUEPRINT.stem]
    assert len(offered) == 1 and offered[0]["info"]["node_pack"] == "custom_nodes.lora-conductor"


def test_blueprint_opens_with_its_widgets(page: Any) -> None:
    graph = json.loads(BLUEPRINT.read_text(encoding="utf-8"))
    load(page, graph, "blueprint")
    node = page.evaluate(
        """() => { const [n] = window.app.graph.nodes
        return { inner: n.subgraph.nodes.map(i => i.type in window.LiteGraph.registered_node_types),
            inputs: n.inputs.filter(i => !i.widget).map(i => i.name), outputs: n.outputs.map(o => o.name),
            widgets: n.widgets.map(w => w.name) } }"""
    )
    assert node["inner"] == [True, True]
    assert node["widgets"] == EXPOSED
    assert (node["inputs"], sorted(node["outputs"])) == (["model", "clip"], ["CLIP", "MODEL"])


def test_router_in_a_subgraph_shows_its_map(page: Any, renderer: str) -> None:
    load(page, workflow(seed=int(torch.randint(1, 10**6, ())), steps=4), f"inside {uuid.uuid4()}")
    path = page.evaluate(INTO_SUBGRAPH, [ROUTER])
    assert ":" in path
    (record,) = queue(page, path)["records"]
    assert_shows(page.evaluate(MAP, path), record)
