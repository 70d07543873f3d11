"""Templates as the server takes them, and the small models that stand where loader nodes stood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from repo_paths import REPO

from ..host.tiny import WORLD_MODEL

TEMPLATES = sorted((REPO / "example_workflows").glob("*.json"))
WORLD_DEMO = REPO / "example_workflows" / "small_world_demo.json"
OF_USERS = [path for path in TEMPLATES if path != WORLD_DEMO]
OF_WORLD = [WORLD_DEMO, *sorted((REPO / "benchmarks" / "emoji" / "workflows").glob("*.json"))]
PAGE_ONLY = {"MarkdownNote", "Note"}  # known to the page alone
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
Workflow = dict[str, Any]
Graph = dict[str, dict[str, Any]]

WORLD_VAE = "emoji_taef1_vae_fp16.safetensors"
# By what a loader node names: the class that stands there in a test, with its inputs. FLUX is the small world's, which
# core's own nodes load; all others are made in memory, since core tells a family by the size of its files.
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd_xl_base_1.0.safetensors": ("TinyCheckpoint", {"family": "SDXL"}),
    "Illustrious-XL-v0.1.safetensors": ("TinyCheckpoint", {"family": "SDXL"}),
    "control-lora-canny-rank256.safetensors": ("TinyControlNet", {"family": "SDXL"}),
    "flux1-dev.safetensors": ("UNETLoader", {"unet_name": WORLD_MODEL, "weight_dtype": "default"}),
    "clip_l.safetensors": ("TinyClip", {"width": 256}),
    "ae.safetensors": ("VAELoader", {"vae_name": WORLD_VAE}),
    "z_image_turbo_bf16.safetensors": ("TinyModel", {"family": "ZImage"}),
    "qwen_3_4b.safetensors": ("TinyClip", {"width": 48}),
    "flux-2-klein-4b.safetensors": ("TinyModel", {"family": "Flux2"}),
    "flux2-vae.safetensors": ("TinyVae", {"channels": 128}),
    "clip_vision_h.safetensors": ("TinyVision", {"kind": "clip_vision_model"}),
    "dino_v3_vit_h.safetensors": ("TinyVision", {"kind": "dinov2"}),
}
SMALL = {"width": 64, "height": 64, "steps": 3, "seeds": 1, "freeze_after": 1}


def read(path: Path) -> Workflow:
    return json.loads(path.read_text(encoding="utf-8"))


def to_api(workflow: Workflow, definitions: dict[str, Any]) -> Graph:
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
                if options and options[0].get("socketless"):
                    inputs[name] = {"__value__": ["", ""]}  # as the page sends it: a widget without a value
                elif isinstance(kind, list) or kind in WIDGETS:
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


def small(graph: Graph) -> Graph:
    """The same graph on small models, small pictures and few steps."""
    made = {}
    for number, node in graph.items():
        named = [value for value in node["inputs"].values() if isinstance(value, str) and value in STAND_INS]
        if named:
            kind, inputs = STAND_INS[named[0]]
            made[number] = {"class_type": kind, "inputs": dict(inputs)}
        else:
            fewer = {k: v for k, v in SMALL.items() if isinstance(node["inputs"].get(k), int) and node["inputs"][k] > v}
            made[number] = {**node, "inputs": node["inputs"] | fewer}
    return made


def nodes_of(graph: Graph, kind: str) -> list[str]:
    """Numbers of the nodes of a class, in their order."""
    return [number for number, node in graph.items() if node["class_type"] == kind]
