"""The pack as a running ComfyUI sees it: loaded without a word of complaint, every input explained."""

from __future__ import annotations

import re
from typing import Any

import pytest

from comfy_server import ComfyServer

MUST_HAVE = {"DualLoRADynamicLoader", "KLLayerRouter", "MetricGuidedSampler"}


@pytest.fixture(scope="module")
def definitions(server: ComfyServer) -> dict[str, Any]:
    """Our nodes' definitions by name, as the page gets them."""
    everything = server.object_info()
    ours = {name: node for name, node in everything.items() if node["python_module"] == "custom_nodes.lora-conductor"}
    assert ours, f"the pack did not load:\n{server.log}"
    return ours


def test_the_three_nodes_are_there(definitions: dict[str, Any]) -> None:
    assert set(definitions) >= MUST_HAVE


def test_everything_is_explained(definitions: dict[str, Any]) -> None:
    silent = []
    for name, node in definitions.items():
        if not node["description"]:
            silent.append(f"{name}: description")
        for group in ("required", "optional"):
            for input_name, (_, options) in node["input"].get(group, {}).items():
                if not options.get("tooltip"):
                    silent.append(f"{name}.{input_name}")
        silent += [
            f"{name} output {output}"
            for output, tooltip in zip(node["output_name"], node["output_tooltips"], strict=True)
            if not tooltip
        ]
    assert silent == []


def test_nodes_stand_together_in_the_menu(definitions: dict[str, Any]) -> None:
    assert {node["category"].split("/")[0] for node in definitions.values()} == {"LoRA Conductor"}


def test_start_up_log_is_clean(server: ComfyServer, definitions: dict[str, Any]) -> None:
    start_up = server.log.split("Starting server")[0]
    complaint = re.compile(r"traceback|warning|error\b|import failed|cannot import|deprecat", re.IGNORECASE)
    known = re.compile(r"comfy_kitchen backend")  # says which optional kernels this machine lacks
    assert [line for line in start_up.splitlines() if complaint.search(line) and not known.search(line)] == []
