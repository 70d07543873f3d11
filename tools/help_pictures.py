"""Pictures of the help pages, from the real page: panels after a run, and each node with what it is connected to."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from repo_paths import REPO
from screenshots import finish_workflow, load_workflow, start_workflow

HELP = REPO / "web" / "docs" / "images"
PANELS = (("KLLayerRouter", "routing_map"), ("MetricGuidedSampler", "guidance_curves"))
IN_TEMPLATES = {
    "DualLoRADynamicLoader": "small_world_demo",
    "MetricEncoderLoader": "small_world_demo",
    "SaveRoutingPlan": "save_and_replay_a_plan",
    "GuidanceReferences": "guidance_with_photos_and_a_mask",
    "MeasureMyPair": "measure_my_pair",
}
IN_PAIRS = {  # with a node that it gives to, or takes from
    "BakeFusedLoRA": ("KSampler", "BakeFusedLoRA"),
    "FusionScore": ("VAEDecode", "FusionScore"),
    "LoadRoutingPlan": ("LoadRoutingPlan", "KLLayerRouter"),
    "MetricGuidance": ("MetricGuidance", "KSampler"),
    "MetricGuidanceGuider": ("MetricGuidanceGuider", "SamplerCustomAdvanced"),
    "MetricGuidanceSampler": ("MetricGuidanceSampler", "SamplerCustom"),
}
FILES = {  # of the loader: a file of the small world, its picture, its trigger words
    "subject_lora": ("lora_subject_fox.safetensors", "reference_fox_noto.png", ["zzfox", "fox"]),
    "style_lora": ("lora_style_openmoji.safetensors", "style_openmoji_koala.png", ["openmoji style, thick outline"]),
}
MARGIN = 24  # around a node, in pixels: the ends of its links are in the picture
COLOURS = 64


def panel_of(page: Any, node_type: str, widget: str) -> bytes:
    """A node's panel as it looks at twice its size."""
    page.evaluate(
        """type => {
        const { canvas, graph } = window.app, node = graph.nodes.find(n => n.type === type)
        canvas.ds.scale = 2
        const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + node.size[1] - 120]
        canvas.ds.offset[0] = canvas.canvas.width / 4 - at[0]
        canvas.ds.offset[1] = canvas.canvas.height / 4 - at[1]
        canvas.setDirty(true, true)
    }""",
        node_type,
    )
    page.wait_for_timeout(1000)
    find = """([type, name]) => window.app.graph.nodes.find(n => n.type === type)
        .widgets.find(w => w.name === name).element"""
    return page.evaluate_handle(find, [node_type, widget]).as_element().screenshot()


def draw_panels(page: Any, path: Path) -> None:
    """The panels, of a run of that workflow that is guided at every step."""
    load_workflow(page, json.loads(path.read_text(encoding="utf-8")), "help")
    page.evaluate(
        """values => { const { widgets } = window.app.graph.nodes.find(n => n.type === 'MetricGuidedSampler')
        for (const [name, value] of Object.entries(values)) widgets.find(w => w.name === name).value = value }""",
        {"guidance_every": 1, "guidance_strength": 0.1},
    )
    start_workflow(page)
    finish_workflow(page, timeout_s=600)
    for node, widget in PANELS:
        (HELP / f"{widget}.png").write_bytes(panel_of(page, node, widget))


def draw_nodes_of(page: Any, template: str) -> None:
    """The nodes that this template, which has just run, shows best."""
    for node_type, shown_in in IN_TEMPLATES.items():
        if shown_in == template:
            save_nodes(page, (node_type,), node_type)


def draw_pairs(page: Any) -> None:
    """The nodes that no template has."""
    for name, pair in IN_PAIRS.items():
        load_workflow(page, {"nodes": [], "links": [], "version": 0.4}, "pair")
        page.evaluate(
            """types => {
            const [source, target] = types.map(type => window.LiteGraph.createNode(type))
            for (const node of [source, target]) window.app.graph.add(node)
            target.pos = [source.pos[0] + source.size[0] + 90, source.pos[1]]
            source.connectByType(0, target, source.outputs[0].type)
        }""",
            list(pair),
        )
        save_nodes(page, pair, name)


def bring_files(base: Path) -> dict[str, str]:
    """Two LoRA files as people have them, with notes and pictures beside them; by the loader's input."""
    folder, made = base / "models" / "loras", {}
    for name, (source, picture, words) in FILES.items():
        file = folder / f"{Path(source).stem.removeprefix('lora_')}_v2.safetensors"
        shutil.copyfile(folder / source, file)
        note = {"trainedWords": words, "baseModel": "Flux.1 S"}
        file.with_suffix(".civitai.info").write_text(json.dumps(note), encoding="utf-8")
        shutil.copyfile(base / "input" / picture, file.with_suffix(".preview.png"))
        made[name] = file.name
    return made


def draw_files(page: Any, files: dict[str, str]) -> None:
    """A loader with what is known of its files."""
    load_workflow(page, {"nodes": [], "links": [], "version": 0.4}, "files")
    page.evaluate(
        """files => {
        const node = window.LiteGraph.createNode('DualLoRADynamicLoader')
        window.app.graph.add(node)
        for (const [name, file] of Object.entries(files)) {
            const widget = node.widgets.find(w => w.name === name)
            widget.value = file
            widget.callback?.(file)
        }
    }""",
        files,
    )
    page.wait_for_timeout(1500)
    save_nodes(page, ("DualLoRADynamicLoader",), "loader_files")


def save_nodes(page: Any, types: tuple[str, ...], name: str) -> None:
    """A picture of the first nodes of these types."""
    box = page.evaluate(
        """([types, margin]) => {
        const { canvas, graph } = window.app
        const nodes = types.map(type => graph.nodes.find(n => n.type === type))
        const edge = (pick, of) => of(...nodes.map(pick))
        const left = edge(n => n.pos[0], Math.min) - margin, top = edge(n => n.pos[1], Math.min) - 30 - margin
        const right = edge(n => n.pos[0] + n.size[0], Math.max) + margin
        const bottom = edge(n => n.pos[1] + n.size[1], Math.max) + margin
        canvas.deselectAll?.()
        canvas.ds.scale = 1
        canvas.ds.offset[0] = 200 - left
        canvas.ds.offset[1] = 120 - top
        canvas.setDirty(true, true)
        return { x: 200, y: 120, width: right - left, height: bottom - top }
    }""",
        [list(types), MARGIN],
    )
    page.wait_for_timeout(1000)
    save_small(page.screenshot(clip=box), name)


def save_small(data: bytes, name: str, colours: int = COLOURS) -> None:
    """A picture in few colours: everybody who installs the pack loads it."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.quantize(colours).save(HELP / f"{name}.png", optimize=True)
