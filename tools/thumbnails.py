"""Draw the thumbnails of the example workflows, and the pictures of the help pages, from the real page.

    thumbnails.py [WORKFLOW.json ...]

Workflows of the small world are run: the thumbnail shows what they drew, and the panel of the node they are about.
Others show the files that they ask for.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

from bootstrap_host import find_host
from comfy_server import ComfyServer
from help_pictures import bring_files, draw_files, draw_nodes_of, draw_pairs, draw_panels, panel_of, save_small
from host_base import make_base, named_base
from repo_paths import REPO
from screenshots import (
    finish_workflow,
    is_of_small_world,
    load_workflow,
    open_page,
    prepare_settings,
    start_workflow,
    use_renderer,
)

EXAMPLES = REPO / "example_workflows"
SIZE = {"width": 560, "height": 560}  # tiles of the template browser are square
TITLES = {
    "compare_policies": "Compare policies",
    "flux_subject_x_style": "FLUX: subject x style",
    "freeze_and_bake": "Freeze, and bake to one LoRA",
    "guidance_with_photos_and_a_mask": "Guidance with photos and a mask",
    "hires_second_pass_controlnet": "Hires second pass with ControlNet",
    "references_by_the_loras": "References drawn by the LoRAs",
    "save_and_replay_a_plan": "Save and replay a plan",
    "sdxl_subject_x_style": "SDXL: subject x style",
    "small_world_demo": "This subject, in that style",
}
PANELS = {  # node and widget that a workflow is about; the router's map otherwise
    "compare_policies": ("DualLoRADynamicLoader", "routing_map"),
    "guidance_with_photos_and_a_mask": ("MetricGuidedSampler", "guidance_curves"),
    "references_by_the_loras": ("MetricGuidedSampler", "guidance_curves"),
}
LAYOUT = """<style>
* { margin: 0; box-sizing: border-box }
body { width: 560px; height: 560px; padding: 22px 24px; background: #1b1c25; color: #f4f4f4; display: flex;
  font: 28px/34px Inter, "DejaVu Sans", sans-serif; flex-direction: column; gap: 16px }
main, .row { flex: 1 1 0; min-height: 0; display: flex; gap: 14px; justify-content: center; align-items: stretch }
main { flex-direction: column }
img { min-width: 0; min-height: 0; max-width: 100%; flex: 0 1 auto; object-fit: contain; border-radius: 6px }
.row > * { height: 100% }
.given { display: flex; flex-direction: column; gap: 8px }
.given img { height: calc(50% - 4px); background: white }
.panel { flex: none; width: 100%; max-height: 50%; display: flex; justify-content: center }
</style><body><div>TITLE</div><main>PICTURES</main></body>"""


def picture(data: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def files_of(page: Any) -> bytes:
    """The part of the graph that names the files: the loaders, ours among them, large enough to be read."""
    box = page.evaluate(
        """() => {
        const { canvas, graph } = window.app, { ds } = canvas
        const boxes = graph.nodes.filter(n => /Loader/.test(n.type))
        graph.nodes.forEach(n => { n.has_errors = false }) // it has only not been told which files to use
        const edge = (pick, of) => of(...boxes.map(pick))
        const [x, y] = [edge(n => n.pos[0], Math.min) - 20, edge(n => n.pos[1], Math.min) - 50]
        const right = edge(n => n.pos[0] + n.size[0], Math.max)
        const bottom = Math.max(y + 0.7 * (right - x), edge(n => n.pos[1] + n.size[1], Math.max))
        ds.scale = 1.25
        ds.offset = [300 - x, 120 - y] // clear of the page's side and tool bars
        canvas.draw(true, true)
        return { x: 300 * ds.scale, y: 120 * ds.scale,
            width: (right + 20 - x) * ds.scale, height: (bottom + 20 - y) * ds.scale }
    }"""
    )
    return page.screenshot(clip=box)


def drawn(server: ComfyServer, workflow: dict[str, Any]) -> list[bytes]:
    """What the newest run saved, in the order of the nodes."""
    newest = list(server.get("/history").values())[-1]["outputs"]
    saving = [str(node["id"]) for node in workflow["nodes"] if node["type"] == "SaveImage"]
    return [server.view(image) for node in saving for image in newest[node]["images"]]


def content(server: ComfyServer, page: Any, path: Path) -> str:
    """HTML of a thumbnail's pictures."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    load_workflow(page, workflow, path.stem)
    if not is_of_small_world(workflow):
        return picture(files_of(page))
    start_workflow(page)
    finish_workflow(page, timeout_s=600)
    results = drawn(server, workflow)
    panel = PANELS.get(path.stem, ("KLLayerRouter", "routing_map"))
    given = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "LoadImage"]
    files = [(server.base_dir / "input" / name).read_bytes() for name in given]
    column = f'<div class="given">{"".join(map(picture, files))}</div>' if files else ""
    row = f'<div class="row">{column}{"".join(map(picture, results))}</div>'
    return row + f'<div class="panel">{picture(panel_of(page, *panel))}</div>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflows", nargs="*", type=Path)
    workflows = [path.resolve() for path in parser.parse_args().workflows] or sorted(EXAMPLES.glob("*.json"))
    if unknown := [path.stem for path in workflows if path.stem not in TITLES]:
        sys.exit(f"error: no title for {', '.join(unknown)}")
    base = make_base(named_base("thumbnails"))
    prepare_settings(base)
    files = bring_files(base)
    with ComfyServer(find_host(), base) as server, open_page(server) as page:
        use_renderer(page, "LiteGraph")
        sheet = page.context.browser.new_page(viewport=SIZE)
        for path in workflows:
            sheet.set_content(
                LAYOUT.replace("TITLE", TITLES[path.stem]).replace("PICTURES", content(server, page, path))
            )
            sheet.screenshot(path=path.with_suffix(".jpg"), type="jpeg", quality=88)
            print(f"wrote {path.with_suffix('.jpg').relative_to(REPO)}", flush=True)
            draw_nodes_of(page, path.stem)
            if path.stem == "compare_policies":
                (grid,) = drawn(server, json.loads(path.read_text(encoding="utf-8")))
                save_small(grid, "policies", colours=96)
            if path.stem == "small_world_demo":
                draw_panels(page, path)
        draw_pairs(page)
        draw_files(page, files)


if __name__ == "__main__":
    main()
