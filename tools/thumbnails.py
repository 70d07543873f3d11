"""Draw the thumbnails of the templates, and the pictures of the help pages, from the real page.

    thumbnails.py [TEMPLATE ...]

A thumbnail is what the small world draws in that template's way: the two given pictures, the plain stack beside the
fused one, and the panel of the node that the template is about. With names, only these thumbnails.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from typing import Any, NamedTuple

from bootstrap_host import find_host
from comfy_server import ComfyServer
from help_pictures import bring_files, draw_files, draw_nodes_of, draw_pairs, draw_panels, panel_of, save_small
from host_base import make_base, named_base
from repo_paths import REPO, WORLD
from screenshots import (
    finish_workflow,
    load_workflow,
    open_page,
    prepare_settings,
    start_workflow,
    use_renderer,
)

EXAMPLES = REPO / "example_workflows"
WORKFLOWS = WORLD / "workflows"
SIZE = {"width": 400, "height": 400}  # tiles of the template browser are square
DEMO = "small_world_demo"
MAP, CURVES = ("KLLayerRouter", "routing_map"), ("MetricGuidedSampler", "guidance_curves")
OPENMOJI, CONTRAST = "openmoji", "fluent-emoji-high-contrast"
STRENGTH_AT = 9  # of MetricGuidedSampler's values: guidance_strength, behind the seed's own widget


class Tile(NamedTuple):
    """What of the small world a template's thumbnail shows.

    Attributes:
        workflow: what is run.
        subject, style: of the demo's pair; others run as they are.
        panel: node and widget that stand below the pictures.
        guided: whether the demo's sampler is.
        given: whether the pictures that are given stand beside.
    """

    workflow: str
    subject: str = ""
    style: str = ""
    panel: tuple[str, str] = MAP
    guided: bool = False
    given: bool = True


TILES = {
    "01_sdxl_subject_x_style": Tile(DEMO, "fox", OPENMOJI),
    "02_illustrious_pony_character_x_style": Tile(DEMO, "alien", CONTRAST),
    "03_flux_subject_x_style": Tile(DEMO, "hamburger", OPENMOJI),
    "04_z_image_turbo_subject_x_style": Tile(DEMO, "fox", CONTRAST),
    "05_flux2_klein_subject_x_style": Tile(DEMO, "alien", OPENMOJI),
    "06_sdxl_compare_policies": Tile("compare_policies", panel=("DualLoRADynamicLoader", "routing_map")),
    "07_sdxl_guidance_by_photos": Tile(DEMO, "hamburger", CONTRAST, CURVES, guided=True),
    "08_sdxl_references_by_the_loras": Tile("references_by_the_loras", panel=CURVES),
    "09_sdxl_hires_second_pass_controlnet": Tile(DEMO, "sunflower", OPENMOJI, given=False),
    "10_sdxl_save_and_replay_a_plan": Tile("save_and_replay_a_plan"),
    "11_flux_freeze_and_bake": Tile("freeze_and_bake"),
    "12_sdxl_measure_my_pair": Tile("measure_my_pair", panel=("MeasureMyPair", "pair_vote"), given=False),
    DEMO: Tile(DEMO, "fox", OPENMOJI, guided=True),
}
LAYOUT = """<style>
* { margin: 0; box-sizing: border-box }
body { width: 400px; height: 400px; padding: 14px; background: #1b1c25;
  display: flex; flex-direction: column; gap: 12px }
.row { flex: 1 1 0; min-height: 0; display: flex; gap: 10px; justify-content: center; align-items: center }
img { min-width: 0; min-height: 0; max-width: 100%; max-height: 100%; flex: 0 1 auto;
  object-fit: contain; border-radius: 4px }
.given { display: flex; flex-direction: column; gap: 10px; flex: none; width: 76px }
.given img { background: white }
.panel { flex: none; height: 40%; display: flex; justify-content: center }
</style><body>PICTURES</body>"""


def picture(data: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def drawn(server: ComfyServer, workflow: dict[str, Any]) -> list[bytes]:
    """What the newest run showed: what was compared with first, then what was saved, in the order of the nodes."""
    newest = list(server.get("/history").values())[-1]["outputs"]
    showing = [
        str(node["id"]) for kind in ("PreviewImage", "SaveImage") for node in workflow["nodes"] if node["type"] == kind
    ]
    return [server.view(image) for node in showing for image in newest[node]["images"]]


def of_pair(workflow: dict[str, Any], tile: Tile) -> dict[str, Any]:
    """The demo on another pair."""
    loras = (f"lora_subject_{tile.subject}.safetensors", f"lora_style_{tile.style}.safetensors")
    given = {"The subject": f"reference_{tile.subject}_twemoji.png", "The style": f"style_{tile.style}_koala.png"}
    stacked = iter(loras)
    for node in workflow["nodes"]:
        values = node["widgets_values"]
        if node["type"] == "EmojiWorldPrompt":
            values[:2] = [tile.subject, tile.style]
        elif node["type"] == "DualLoRADynamicLoader":
            values[:2] = loras
        elif node["type"] == "LoraLoaderModelOnly":
            values[0] = next(stacked)
        elif node["type"] == "LoadImage":
            values[0] = given[node["title"]] if tile.given else values[0]
        elif node["type"] == "MetricGuidedSampler" and not tile.guided:
            values[STRENGTH_AT] = 0.0
    return workflow


def content(server: ComfyServer, page: Any, tile: Tile) -> str:
    """HTML of a thumbnail's pictures."""
    path = (EXAMPLES if tile.workflow == DEMO else WORKFLOWS) / f"{tile.workflow}.json"
    workflow = json.loads(path.read_text(encoding="utf-8"))
    if tile.subject:
        workflow = of_pair(workflow, tile)
    load_workflow(page, workflow, path.stem)
    start_workflow(page)
    finish_workflow(page, timeout_s=600)
    results = drawn(server, workflow)
    given = [node["widgets_values"][0] for node in workflow["nodes"] if tile.given and node["type"] == "LoadImage"]
    files = [(server.base_dir / "input" / name).read_bytes() for name in given]
    column = f'<div class="given">{"".join(map(picture, files))}</div>' if files else ""
    row = f'<div class="row">{column}{"".join(map(picture, results))}</div>'
    return row + f'<div class="panel">{picture(panel_of(page, *tile.panel))}</div>'


def draw_help(server: ComfyServer, page: Any) -> None:
    """The pictures of the help pages."""
    for path in (EXAMPLES / f"{DEMO}.json", *sorted(WORKFLOWS.glob("*.json"))):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        load_workflow(page, workflow, path.stem)
        start_workflow(page)
        finish_workflow(page, timeout_s=600)
        draw_nodes_of(page, path.stem)
        if path.stem == "compare_policies":
            (grid,) = drawn(server, workflow)
            save_small(grid, "policies", colours=96)
        if path.stem == DEMO:
            draw_panels(page, path)
    draw_pairs(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*")
    names = parser.parse_args().templates
    if unknown := sorted({*names, *(path.stem for path in EXAMPLES.glob("*.json"))} - set(TILES)):
        sys.exit(f"error: no picture is described for {', '.join(unknown)}")
    base = make_base(named_base("thumbnails"))
    prepare_settings(base)
    files = bring_files(base)
    with ComfyServer(find_host(), base) as server, open_page(server) as page:
        use_renderer(page, "LiteGraph")
        sheet = page.context.browser.new_page(viewport=SIZE)
        for name in names or TILES:
            sheet.set_content(LAYOUT.replace("PICTURES", content(server, page, TILES[name])))
            target = EXAMPLES / f"{name}.jpg"
            sheet.screenshot(path=target, type="jpeg", quality=82)
            print(f"wrote {target.relative_to(REPO)}", flush=True)
        if not names:
            draw_help(server, page)
            draw_files(page, files)


if __name__ == "__main__":
    main()
