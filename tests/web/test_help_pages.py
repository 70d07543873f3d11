"""Help pages: one a node, where the page looks for it, and quoting errors that exist."""

from __future__ import annotations

import ast
import functools
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from comfy_server import ComfyServer
from lora_conductor.nodes import NODES
from repo_paths import REPO

PAGES = REPO / "web" / "docs"
NAMES = [node.define_schema().node_id for node in NODES]


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def texts(file: Path) -> list[str]:
    """The string literals of a source file, f-strings with a gap where a value goes."""
    found = []
    for part in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(part, ast.JoinedStr):
            found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in part.values))
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.append(part.value)
    return found


@functools.cache
def said() -> str:
    """All string literals of the pack."""
    files = [f for room in ("nodes", "host", "fusion", "guidance") for f in (REPO / room).rglob("*.py")]
    return "\n".join(text for f in files for text in texts(f))


def test_one_page_a_node() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_server_has_the_page(server: ComfyServer, name: str) -> None:
    with urllib.request.urlopen(f"{server.url}/extensions/lora-conductor/docs/{name}.md") as answer:
        assert answer.read().decode() == page(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_picture_that_the_server_has(server: ComfyServer, name: str) -> None:
    pictures = re.findall(r"!\[[^\]]+\]\((images/[^)]+)\)", page(name))
    assert pictures
    for picture in pictures:
        with urllib.request.urlopen(f"{server.url}/extensions/lora-conductor/docs/{picture}") as answer:
            assert answer.read() == (PAGES / picture).read_bytes()


@pytest.mark.parametrize("node", NODES, ids=NAMES)
def test_what_it_speaks_of_exists(node: type) -> None:
    schemas = [other.define_schema() for other in NODES]
    names = {part.id for schema in schemas for part in (*schema.inputs, *schema.outputs)}
    spoken_of = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page(node.define_schema().node_id))
    choices = {p for schema in schemas for i in schema.inputs for p in getattr(i, "options", None) or []}
    assert set(spoken_of) <= names | choices


@pytest.mark.parametrize("name", NAMES)
def test_quoted_errors_exist(name: str) -> None:
    first_columns = re.findall(r"^\| (\*[^|]+)\|", page(name).split("## Errors")[1], re.MULTILINE)
    assert first_columns
    quoted = re.findall(r"\*([^*]+)\*", "\n".join(first_columns))
    pieces = [piece.strip() for quote in quoted for piece in quote.split("...")]
    assert [piece for piece in pieces if piece and piece not in said()] == []


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_tables_fit_the_side_panel(page: Any, renderer: str) -> None:
    template = json.loads((REPO / "example_workflows" / "small_world_demo.json").read_text(encoding="utf-8"))
    page.evaluate("graph => window.app.loadGraphData(graph, true, true, 'help')", template)
    page.wait_for_timeout(500)
    select = "id => window.app.canvas.selectNode(window.app.graph.getNodeById(id))"
    open_help = "() => document.querySelector('[data-testid=info-button]').click()"
    tables = """title => {
        const panel = [...document.querySelectorAll('h1')].find(h => h.textContent === title)?.parentElement
        return [...(panel?.querySelectorAll('table') ?? [])].map(t => [t.scrollWidth, panel.clientWidth]) }"""
    for number, title in ((9, "Dual LoRA Dynamic Loader"), (10, "KL Layer Router"), (12, "Routing Report")):
        page.evaluate(select, number)
        page.wait_for_selector("[data-testid=info-button]", state="attached")
        page.evaluate(open_help)
        page.wait_for_function(f"title => ({tables})(title).length", arg=title)
        assert all(width <= room for width, room in page.evaluate(tables, title))
