"""Measure the whole grid of equalities and write it as a table: ``make family-grid``.

Every family of models that ComfyUI knows, built small and random; every kind of adapter on all its layers; our live sum
against ComfyUI's stacked loaders. Exits with 1 when a cell fails. ``--break KIND`` breaks a delta on purpose.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from made_pages import as_called, ended

from ...conftest import HOST, REPO  # first: it makes ComfyUI importable
from .bench import Tamper
from .catalogue import FAMILIES
from .grid import BREAKS, Cell, measure_row
from .table import table

COMMAND = "make family-grid"


def measured(names: list[str], tamper: Tamper | None) -> Iterator[list[Cell]]:
    """The cells of one family after another."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            yield measure_row(name, Path(folder), tamper)
            print(name, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="only this one; may be given several times")
    parser.add_argument("--break", dest="broken", choices=BREAKS, help="break a delta on purpose")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "family-grid.md")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    names = options.family or [name for name, family in FAMILIES.items() if family.in_host]
    tamper = BREAKS[options.broken] if options.broken else None
    rows = list(measured(names, tamper))
    called = as_called(COMMAND, family=options.family, **{"break": [options.broken] if options.broken else []})
    options.output.write_text(table(rows, HOST.version, called))
    cells = [cell for row in rows for cell in row]
    failed = [f"{cell.family} {cell.kind} {cell.dtype}: {cell.error:.1e}" for cell in cells if not cell.passed]
    return ended(f"{len(cells)} cells", failed, options.output)


if __name__ == "__main__":
    sys.exit(main())
