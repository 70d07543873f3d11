"""Every template: its drawing is sound and as the tool draws it, its files are named as core's own templates do."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import template_files
import templates
from comfy_server import ComfyServer
from repo_paths import REPO

from .graphs import OF_USERS, OF_WORLD, PAGE_ONLY, TEMPLATES, read

TITLE = 30  # a node's title bar lies above its position
LOADERS = {  # of core: each of its choices is a file that a user may lack
    "CheckpointLoaderSimple",
    "CLIPLoader",
    "CLIPVisionLoader",
    "ControlNetLoader",
    "DualCLIPLoader",
    "UNETLoader",
    "VAELoader",
}


@pytest.fixture(params=dict.fromkeys([*TEMPLATES, *OF_WORLD]), ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(Path(request.param))


@pytest.fixture(params=OF_USERS, ids=lambda path: path.stem)
def users(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A template that a registry install has."""
    return read(Path(request.param))


def test_drawing_is_tidy(workflow: dict[str, Any]) -> None:
    boxes = [(n["type"], *n["pos"], *n["size"]) for n in workflow["nodes"]]
    for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in combinations(boxes, 2):
        apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - TITLE or by + bh <= ay - TITLE
        assert apart, f"{a} and {b} overlap"
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        for name, nx, ny, nw, nh in boxes:
            inside = x <= nx and nx + nw <= x + width and y <= ny - TITLE and ny + nh <= y + height
            outside = nx + nw <= x or nx >= x + width or ny + nh <= y or ny - TITLE >= y + height
            assert inside or outside, f"{name} lies across the edge of '{group['title']}'"


def test_links_agree_with_the_nodes(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, out, target, into, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][out]["links"] and nodes[target]["inputs"][into]["link"] == link
        assert nodes[source]["outputs"][out]["type"] == kind


def test_every_file_is_named_with_its_address(users: dict[str, Any]) -> None:
    """Core's page offers what is missing for download by this metadata; only the chosen files, each once."""
    for node in users["nodes"]:
        chosen = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        offered = node["properties"].get("models", [])
        assert [file["name"] for file in offered] == chosen, node["type"]
        assert chosen if node["type"] in LOADERS else not chosen, f"{node['type']} names {chosen}"
        for file in offered:
            assert file["url"].startswith("https://huggingface.co/") and file["url"].endswith(f"/{file['name']}")
            assert "/resolve/" in file["url"] and file["directory"]


@pytest.fixture(scope="module")
def core_s_templates() -> str:
    """The text of all templates that core brings along."""
    found = importlib.util.find_spec("comfyui_workflow_templates_json")
    if found is None or not found.submodule_search_locations:
        pytest.skip("this host's templates are not installed as JSON")
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.json"))
    return "".join(path.read_text(encoding="utf-8") for path in files if not path.name.startswith("index"))


def test_addresses_are_those_of_core_s_own_templates(users: dict[str, Any], core_s_templates: str) -> None:
    for node in users["nodes"]:
        for file in node["properties"].get("models", []):
            assert json.dumps(file["url"])[1:-1] in core_s_templates or file in template_files.ELSEWHERE, file


def test_loras_are_none_and_the_words_are_to_be_replaced(users: dict[str, Any]) -> None:
    (loader,) = [node for node in users["nodes"] if node["type"] == "DualLoRADynamicLoader"]
    values = dict(zip(_widgets(loader), loader["widgets_values"], strict=False))
    assert (values["subject_lora"], values["style_lora"]) == ("None", "None")
    prompts = " ".join(n["widgets_values"][0] for n in users["nodes"] if n["type"] == "CLIPTextEncode")
    assert "SUBJECT_TRIGGER" in prompts and "STYLE_TRIGGER" in prompts


def test_a_note_in_three_steps_and_the_plain_stack_beside(users: dict[str, Any]) -> None:
    (note,) = [node for node in users["nodes"] if node["type"] in PAGE_ONLY]
    headings = [line for line in note["widgets_values"][0].splitlines() if line.startswith("#")]
    assert [heading[:5] for heading in headings] == ["## 1.", "## 2.", "## 3."]
    kinds = [node["type"] for node in users["nodes"]]
    stacked = [n for n in users["nodes"] if n["type"] == "KLLayerRouter" and n["widgets_values"][0] == "sum"]
    grid = [n for n in users["nodes"] if n["type"] == "ComparePolicies" and "sum" in n["widgets_values"][0]]
    compared = len(stacked) == 1 and "ImageCompare" in kinds and "PreviewImage" in kinds
    assert compared or grid or "MeasureMyPair" in kinds  # which draws it itself


def _widgets(node: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in node["inputs"] if "widget" in entry]


def test_numbers_put_them_in_order() -> None:
    numbers = [path.stem.split("_")[0] for path in OF_USERS]
    assert numbers == [f"{number:02}" for number in range(1, len(numbers) + 1)]
    assert OF_USERS[0].stem.startswith("01_sdxl")


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_it_is_what_the_tool_draws(server: ComfyServer, name: str) -> None:
    """``make templates``; widgets that nodes have got since are left to their defaults."""
    saved = read(REPO / "example_workflows" / f"{name}.json")
    made = json.loads(json.dumps(templates.drawn(name, server.object_info())))
    assert [node["type"] for node in saved["nodes"]] == [node["type"] for node in made["nodes"]]
    assert saved["groups"] == made["groups"]
    ends = [[link[1], link[3], link[5]] for link in saved["links"]]
    assert ends == [[link[1], link[3], link[5]] for link in made["links"]]
    for old, new in zip(saved["nodes"], made["nodes"], strict=True):
        for key in ("pos", "size", "title", "properties"):
            assert old.get(key) == new.get(key)
        values = old["widgets_values"]
        # A choice among files that are here is not what the tool chose.
        assert values == new["widgets_values"][: len(values)], old["type"]


def test_template_browser_finds_them_with_their_thumbnails(server: ComfyServer) -> None:
    assert TEMPLATES
    assert set(server.get("/workflow_templates")["lora-conductor"]) == {path.stem for path in TEMPLATES}
    for path in TEMPLATES:
        address = f"{server.url}/api/workflow_templates/lora-conductor/{path.stem}"
        for suffix in (".json", ".jpg"):
            with urllib.request.urlopen(address + suffix) as answer:
                assert answer.read() == path.with_suffix(suffix).read_bytes()
