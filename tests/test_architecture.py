"""The house rules that a machine can hold: import arrows, and what a shipped file may contain."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repo_paths import PACKAGE_PATH, REPO

ROOMS = ("fusion", "guidance", "host", "nodes")
SHIPPED = sorted([REPO / "__init__.py", *(file for room in ROOMS for file in (REPO / room).rglob("*.py"))])
EVERY = sorted(file for room in (*ROOMS, "tests", "tools", "benchmarks") for file in (REPO / room).rglob("*.py"))

# The registry's scanner reports these, and a node pack that samples pictures needs none of them.
FORBIDDEN_MODULES = {"subprocess", "socket", "urllib", "http", "requests", "aiohttp", "pickle", "base64", "marshal"}
# Optional and heavy: only inside the function that needs them.
LAZY_MODULES = {"open_clip", "timm", "transformers", "matplotlib", "torchvision"}


def name(file: Path) -> str:
    return str(file.relative_to(REPO))


def imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """(level, module) of each import statement among ``nodes``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_import_arrows() -> None:
    """nodes -> host -> fusion, guidance; fusion and guidance know neither ComfyUI nor each other."""
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command as run; run()"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PATH)}
    done = subprocess.run([*command, "--no-cache"], cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", SHIPPED, ids=name)
def test_shipped_imports(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    anywhere = {module.split(".")[0] for level, module in imports(ast.walk(tree)) if level == 0}
    assert not anywhere & FORBIDDEN_MODULES
    assert "lora_conductor" not in anywhere, "the pack's folder has another name in custom_nodes: import relatively"
    at_import_time = {module.split(".")[0] for level, module in imports(iter(tree.body)) if level == 0}
    assert not at_import_time & LAZY_MODULES


@pytest.mark.parametrize("file", SHIPPED, ids=name)
def test_shipped_calls(file: Path) -> None:
    """No device chosen behind ComfyUI's back, no unpickling of arbitrary objects."""
    for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
        function = ast.unparse(call.func)
        assert not function.endswith(".cuda"), f"line {call.lineno}: use comfy.model_management's device"
        if function == "torch.load":
            assert any(k.arg == "weights_only" for k in call.keywords), f"line {call.lineno}: torch.load"


@pytest.mark.parametrize("file", SHIPPED, ids=name)
def test_one_named_logger(file: Path) -> None:
    """What is logged is logged as ``lora_conductor``: users filter by name, and print() knows no level."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    loggers = [call for call in ast.walk(tree) if isinstance(call, ast.Call) and "getLogger" in ast.unparse(call.func)]
    if file == REPO / "host" / "core" / "log.py":
        assert [ast.unparse(call) for call in loggers] == ["logging.getLogger('lora_conductor')"]
        return
    used = {module.split(".")[0] for level, module in imports(ast.walk(tree)) if level == 0}
    assert not used & {"logging", "warnings"} and not loggers, "use the logger of host/core/log.py"
    calls = [call for call in ast.walk(tree) if isinstance(call, ast.Call) and ast.unparse(call.func) == "print"]
    assert not calls, f"line {calls[0].lineno}: print"


def test_source_encoding() -> None:
    """Windows consoles and the registry's checks read .py files as cp1252."""
    for file in EVERY:
        file.read_text(encoding="utf-8").encode("cp1252")


def test_the_quick_check_has_a_part_of_every_room_of_host() -> None:
    """What `make check` runs of host: tests that exist, from each room."""
    makefile = (REPO / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (smoke,) = (line for line in makefile.splitlines() if line.startswith("SMOKE :="))
    chosen = [part.partition("::") for part in smoke.split()[2:]]
    for file, _, test in chosen:
        assert not test or f"def {test}(" in (REPO / file).read_text(encoding="utf-8"), f"{file} has no {test}"
    rooms = {front.parent.name for front in (REPO / "host").glob("*/__init__.py")} - {"core"}
    assert rooms == {file.split("/")[2] for file, *_ in chosen}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "docs/trust.md"])
def test_what_the_pages_name_exists(page: str) -> None:
    """Files, rooms, tests and targets of make."""
    text = (REPO / page).read_text(encoding="utf-8")
    entries = [entry.name for entry in REPO.iterdir() if not entry.name.startswith(".")] + [".ci", ".github"]
    paths = re.findall(rf"`((?:{'|'.join(map(re.escape, entries))})(?:/[\w./-]*)?)(?:::(\w+))?`", text)
    targets = re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, re.MULTILINE)
    assert targets
    for path, test in paths:
        assert (REPO / path).exists(), f"{page} names {path}"
        assert not test or f"def {test}(" in (REPO / path).read_text(encoding="utf-8"), f"{page} names {path}::{test}"
    known = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) <= set(known)


ROOM_FOLDERS = {p.parent for room in ROOMS for p in (REPO / room).glob("*/__init__.py")}
# A kind of adapter is one file and one row of this table; a line in the room's door would be a third place.
BEHIND_THE_DOOR = {REPO / "host" / "loras" / "kinds.py"}


@pytest.mark.parametrize("file", [f for f in SHIPPED if f not in BEHIND_THE_DOOR], ids=name)
def test_rooms_are_entered_by_their_doors(file: Path) -> None:
    """From outside a room, import what its ``__init__`` hands out; inside it, the file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or not node.module:
            continue
        target = file.parents[node.level - 1].joinpath(*node.module.split("."))
        room = next((r for r in ROOM_FOLDERS if r in target.parents), None)
        assert room is None or room in file.parents, f"line {node.lineno}: import from {room.relative_to(REPO)}"
