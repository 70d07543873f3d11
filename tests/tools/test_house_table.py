"""The table of rooms in ARCHITECTURE.md: true, and found out when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

import house_table
from made_pages import PageError, with_table


@pytest.fixture
def house(tmp_path: Path) -> Path:
    files = {
        "nodes/__init__.py": '"""What users see."""\n',
        "nodes/loader.py": '"""One | two, by ``three``.\n\nMore of it.\n"""\n' + "x = 1\n" * 60,
        "nodes/inputs/sockets.py": '"""Sockets."""\n',
        "nodes/docs/page.md": "no code",
        "host/__init__.py": '"""All that knows the host."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_page_is_true() -> None:
    page = house_table.PAGE.read_text(encoding="utf-8")
    assert with_table(page, house_table.COMMAND, house_table.table()) == page, "stale; run: make house"


def test_rows_say_what_the_files_say(house: Path) -> None:
    assert house_table.table(house).splitlines()[2:] == [
        "| **nodes** (1 file) | **100** | **What users see.** |",
        "| loader.py | 100 | One \\| two, by `three`. |",
        "| **nodes/inputs** (1 file) | **50** |  |",
        "| sockets.py | 50 | Sockets. |",
        "| **host** |  | **All that knows the host.** |",
    ]


def test_a_changed_file_makes_the_table_stale(house: Path) -> None:
    before = house_table.table(house)
    file = house / "nodes" / "loader.py"
    text = file.read_text()
    file.write_text(text + "x = 1\n")
    assert house_table.table(house) == before, "a line more is none of the page"
    for changed in (text + "x = 1\n" * 60, text.replace("One", "Another")):
        file.write_text(changed)
        assert house_table.table(house) != before
    file.rename(house / "nodes" / "other.py")
    assert "other.py" in house_table.table(house)


def test_a_file_that_does_not_say_what_it_is_for_is_named(house: Path) -> None:
    (house / "nodes" / "silent.py").write_text("x = 1\n")
    with pytest.raises(PageError, match=r"nodes/silent\.py has no docstring"):
        house_table.table(house)
