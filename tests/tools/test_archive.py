"""What users download: all that the pack needs, nothing of the workshop, and little of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import archive
from archive import ArchiveError, archived, packed
from repo_paths import REPO

MOST = 3_000_000  # bytes zipped; most of it are thumbnails and pictures of help pages


@pytest.fixture(scope="module")
def files() -> list[str]:
    try:
        return [file.as_posix() for file in archived()]
    except ArchiveError as error:
        pytest.skip(f"not a git checkout: {error}")


def test_nothing_of_the_workshop(files: list[str]) -> None:
    rooms = {name.split("/")[0] for name in files}
    assert not rooms & {"tests", "tools", "benchmarks", "docs", ".github", ".ci", "Makefile", "requirements-dev.txt"}
    assert {name.rpartition(".")[2] for name in files} <= {
        "py",
        "js",
        "css",
        "json",
        "md",
        "jpg",
        "png",
        "toml",
        "txt",
        "LICENSE",
    }


def test_all_that_is_shipped(files: list[str]) -> None:
    needed = {"__init__.py", "pyproject.toml", "LICENSE", "README.md", "requirements.txt", "SECURITY.md"}
    for room in ("fusion", "guidance", "host", "nodes", "web", "locales", "example_workflows", "subgraphs"):
        tracked = subprocess.run(["git", "ls-files", "-z", room], cwd=REPO, capture_output=True, text=True, check=True)
        names = {name for name in tracked.stdout.split("\0") if name}
        assert names
        needed |= {name for name in names if "/small_world_demo." not in name}
    assert needed <= set(files)


def test_no_template_asks_for_what_is_not_packed(files: list[str]) -> None:
    """The small world stays in the repository: its node, its models, and the one template that runs on them."""
    packed_templates = [name for name in files if name.startswith("example_workflows/") and name.endswith(".json")]
    assert len(packed_templates) >= 11
    for name in packed_templates:
        text = (REPO / name).read_text(encoding="utf-8")
        assert "EmojiWorld" not in text and "emoji_" not in text, name
        assert name.replace(".json", ".jpg") in files, f"{name} has no picture"


def test_it_is_small(files: list[str], record_property) -> None:
    size = len(packed([Path(name) for name in files]))
    record_property("bytes of the archive", size)
    assert size < MOST


def test_no_file_is_hidden_from_what_imports_it(files: list[str]) -> None:
    """Every relative import of a packed file finds its file in the pack."""
    have = set(files)
    for name in (name for name in files if name.endswith(".py")):
        folder = Path(name).parent
        for node in ast.walk(ast.parse((REPO / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = folder.joinpath(*[".."] * (node.level - 1), *(node.module or "").split("."))
                parts = [part for part in base.parts if part]
                flat: list[str] = []
                for part in parts:
                    flat.pop() if part == ".." else flat.append(part)
                target = "/".join(flat)
                assert f"{target}.py" in have or f"{target}/__init__.py" in have or not target, (name, target)


REPLACED = re.compile(r"(?<![\w.])(?:window\.|globalThis\.)?(?:api|app|LiteGraph|LGraph\w*)(?:\.\w+)+\s*=(?![=>])")


def test_no_function_of_the_shared_page_is_replaced(files: list[str]) -> None:
    """Other packs rely on them; the registry's linter says so as well."""
    assert REPLACED.search("  api.getWorkflowTemplates = async function () {") and not REPLACED.search("app.x === 1")
    for name in (name for name in files if name.endswith(".js")):
        assert not REPLACED.search((REPO / name).read_text(encoding="utf-8")), name


def test_the_command(tmp_path: Path, files: list[str]) -> None:
    made = tmp_path / "node.zip"
    command = [sys.executable, REPO / "tools" / "archive.py", "--rooms", "--zip", made]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and f"in {len(files)} files" in done.stdout, done.stderr
    assert zipfile.ZipFile(made).namelist() == files


def test_an_ignored_file_is_left_out(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("kept.py", "tests/test.py", "web/tests/kept.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / archive.IGNORED.name).write_text("/tests/\n")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert [file.as_posix() for file in archived(tmp_path)] == [".comfyignore", "kept.py", "web/tests/kept.js"]
