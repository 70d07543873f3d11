"""Pages that commands make: only their own part is replaced, and what failed is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_pages import PageError, as_called, ended, marks, put_table, table_of, with_table

COMMAND = "make something"
BEGIN, END = marks(COMMAND)


def test_only_what_lies_between_the_marks_is_replaced() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    anew = with_table(page, COMMAND, "rows")
    assert anew == f"above\n{BEGIN}\n\nrows\n\n{END}\nbelow\n" == with_table(anew, COMMAND, "rows")
    assert table_of(anew, COMMAND).strip() == "rows" and table_of("a page", COMMAND) == ""
    for broken in ("", f"{BEGIN}", f"{END}\n{BEGIN}", page + page, page + BEGIN):
        with pytest.raises(PageError, match="once, in this order"):
            with_table(broken, COMMAND, "rows")


def test_two_commands_share_a_page(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", "make something-else"
    page.write_text("\n".join(line for command in (COMMAND, other) for line in marks(command)))
    put_table(page, COMMAND, "one")
    put_table(page, other, "two")
    put_table(page, COMMAND, "three")
    text = page.read_text()
    assert table_of(text, COMMAND).strip() == "three" and table_of(text, other).strip() == "two"


def test_a_command_is_told_as_it_was_called() -> None:
    assert as_called(COMMAND, family=None) == COMMAND == as_called(COMMAND, family=[])
    called = as_called(COMMAND, family=["Flux", "SD15"], oddity=["alpha inf"])
    assert called == f"{COMMAND} ARGS=\"--family Flux --family SD15 --oddity 'alpha inf'\""


def test_what_failed_is_told_and_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("3 cells", [], Path("page.md")) == 0
    assert capsys.readouterr().out == "3 cells, 0 failed: page.md\n"
    assert ended("3 cells", ["this one"], Path("page.md")) == 1
    assert capsys.readouterr().out == "FAILED this one\n3 cells, 1 failed: page.md\n"
