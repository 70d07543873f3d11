"""The table of rooms and files in ARCHITECTURE.md, made of the files themselves.

    house_table.py            writes it anew
    house_table.py --check    only says whether it is as it should be

A file's purpose is the first line of its docstring, a room's that of its ``__init__``. Lines are rounded up, so that a
small change of a file is none of the page.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from made_pages import PageError, with_table
from repo_paths import REPO

PAGE = REPO / "ARCHITECTURE.md"
ROOMS = ("nodes", "host", "fusion", "guidance")
COMMAND = "make house"
ROUNDED_TO = 50


def purpose(file: Path) -> str:
    """First line of a module's docstring; "" if it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def rounded(lines: int) -> int:
    return -(-lines // ROUNDED_TO) * ROUNDED_TO


def rooms(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder with Python files below the rooms, and its files but ``__init__``; rooms in the order of arrows."""
    for room in ROOMS:
        for folder in sorted([root / room, *(root / room).rglob("*/")]):
            files = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
            if files or (folder / "__init__.py").exists():
                yield folder, files


def table(root: Path = REPO) -> str:
    """Room by room: its files, how long they are and what they are for, as Markdown.

    Raises:
        PageError: a file does not say what it is for.
    """
    rows = ["| room, file | lines | what it is for |", "|---|---|---|"]
    for folder, files in rooms(root):
        lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
        front = folder / "__init__.py"
        about = purpose(front) if front.exists() else ""
        room = folder.relative_to(root).as_posix()
        size = f"**{rounded(sum(lengths.values()))}**" if files else ""
        rows.append(f"| **{room}**{_count(files)} | {size} | {_bold(about)} |")
        for file, lines in lengths.items():
            if not (said := purpose(file)):
                raise PageError(f"{file.relative_to(root).as_posix()} has no docstring that says what it is for")
            rows.append(f"| {file.name} | {rounded(lines)} | {_cell(said)} |")
    return "\n".join(rows)


def _count(files: list[Path]) -> str:
    return f" ({len(files)} file{'s' * (len(files) > 1)})" if files else ""


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _bold(text: str) -> str:
    return f"**{_cell(text)}**" if text else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the table is stale")
    check = parser.parse_args().check
    try:
        page = PAGE.read_text(encoding="utf-8")
        anew = with_table(page, COMMAND, table())
    except (OSError, PageError) as error:
        sys.exit(f"error: {PAGE.name}: {error}")
    if page == anew:
        return
    if check:
        sys.exit(f"error: the table in {PAGE.name} is stale; run: make house")
    PAGE.write_text(anew, encoding="utf-8")
    print(f"{PAGE.name}: table made anew")


if __name__ == "__main__":
    main()
