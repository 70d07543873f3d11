"""One cell of the matrix for real, and how the table tells what did not pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

import matrix
from made_pages import marks, table_of, with_table
from matrix import COMMAND, Cell


def test_a_cell_passes(host) -> None:
    if host.version not in matrix.DISTRIBUTIONS:
        pytest.skip("a ComfyUI of your own")
    cell = matrix.measure(host.version, "default")
    assert cell.state == "passed", cell.reason
    assert cell.error is not None and cell.error <= matrix.TOLERANCE


def test_a_broken_cell_fails_with_its_reason(host, monkeypatch: pytest.MonkeyPatch) -> None:
    if host.version not in matrix.DISTRIBUTIONS:
        pytest.skip("a ComfyUI of your own")
    monkeypatch.setattr(matrix, "TOLERANCE", -1.0)
    monkeypatch.setitem(matrix.MODES, "default", (*matrix.CPU, "--cache-none"))
    cell = matrix.measure(host.version, "default")
    assert cell.state == "failed" and "sum differs" in cell.reason


def test_the_table() -> None:
    cells = [
        Cell("1.0", "default", "passed", 2e-7),
        Cell("1.0", "cache-ram", "does not start", reason="unknown"),
        Cell("2.0", "default", "failed", 1.0, "sum differs"),
        Cell("2.0", "cache-ram", "passed", 0.0),
    ]
    rows = matrix.table(cells).splitlines()
    assert rows[2] == "| default | `--cpu` | 2e-07 | **FAILED** |"
    assert rows[3] == "| cache-ram | `--cpu --cache-ram` | does not start | 0 |"
    assert rows[5:] == ["- cache-ram on 1.0: unknown", "- default on 2.0: sum differs"]
    page = with_table("\n".join(["above", *marks(COMMAND), "below"]), COMMAND, "\n".join(rows))
    assert matrix.cells_of(page) == [cells[0], replace(cells[2], error=None), cells[1], cells[3]]


def test_the_page_is_of_every_supported_version() -> None:
    """The supported versions stand in the table that was committed, and nothing in it failed."""
    page = matrix.PAGE.read_text(encoding="utf-8")
    between = table_of(page, COMMAND)
    header = next(line for line in between.splitlines() if line.startswith("| mode"))
    assert [cell.strip() for cell in header.split("|")[3:-1]] == list(matrix.DISTRIBUTIONS)
    assert "FAILED" not in between
