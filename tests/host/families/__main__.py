"""Measure the whole grid of equalities and write it as a table: ``make family-grid``.

Every family of models that ComfyUI knows, built small and random; every kind of adapter on all its layers; our live sum
against ComfyUI's stacked loaders. Exits with 1 when a cell fails. ``--break KIND`` breaks a delta on purpose.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
TESTS = REPO / "tests"
COMMAND = "make family-grid"


def load_grid() -> tuple[Any, Any, str]:
    """The grid's modules, which live with the tests, and the version of the host that their ``conftest`` enters."""
    package = types.ModuleType("tests")  # a folder of tests is no package, but its modules import one another as one
    package.__path__ = [str(TESTS)]
    sys.modules["tests"] = package
    conftest = importlib.import_module("tests.conftest")
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    return (
        importlib.import_module("tests.host.family_grid"),
        importlib.import_module("tests.host.family_table"),
        conftest.HOST.version,
    )


def measured(grid: Any, names: list[str], tamper: Any) -> Iterator[list[Any]]:
    """The cells of one family after another."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            yield grid.measure_row(name, Path(folder), tamper)
            print(name, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="only this one; may be given several times")
    parser.add_argument("--break", dest="broken", choices=["louder", "dropped"], help="break a delta on purpose")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "family-grid.md")
    options = parser.parse_args()
    grid, table, version = load_grid()
    names = options.family or [name for name, family in grid.FAMILIES.items() if family.in_host]
    tamper = grid.BREAKS[options.broken] if options.broken else None
    rows = list(measured(grid, names, tamper))
    arguments = [f"--family {name}" for name in options.family or []]
    arguments += [f"--break {options.broken}"] if options.broken else []
    text = table.table(rows, version, COMMAND + (f' ARGS="{" ".join(arguments)}"' if arguments else ""))
    options.output.write_text(text)
    failed = [cell for row in rows for cell in row if not cell.passed]
    for cell in failed:
        print(f"FAILED {cell.family} {cell.kind} {cell.dtype}: {cell.error:.1e}")
    print(f"{sum(map(len, rows))} cells, {len(failed)} failed: {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
