"""Measure the whole grid of file kinds and write it as a table: ``make file-grid``.

Every kind of adapter with every oddity that files have, in every dialect of names, against ComfyUI's own loaders. Exits
with 1 when a cell fails. ``--break KIND`` breaks a delta on purpose.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from made_pages import as_called, ended

from ...conftest import HOST, REPO  # first: it makes ComfyUI importable
from .grid import BREAKS, KINDS, MODELS, Cell, Grid
from .oddities import ODDITIES
from .table import page

COMMAND = "make file-grid"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; may be given several times")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this adapter; may be given several times")
    parser.add_argument("--oddity", action="append", choices=ODDITIES, help="only this; may be given several times")
    parser.add_argument("--break", dest="broken", choices=BREAKS, help="break a delta on purpose")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "file-kinds.md")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    start, cells = time.monotonic(), list(_measured(options))
    given = {"model": options.model, "kind": options.kind, "oddity": options.oddity}
    given["break"] = [options.broken] if options.broken else []
    options.output.write_text(page(cells, HOST.version, as_called(COMMAND, **given)))
    failed = [str(cell) for cell in cells if not cell.passed]
    return ended(f"{len(cells)} cells, {(time.monotonic() - start) / 60:.0f} min", failed, options.output)


def _measured(options: argparse.Namespace) -> Iterator[Cell]:
    """The cells that were asked for, one after another."""
    for model in options.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            grid = Grid(model, Path(folder))
            for head, naming, kind, oddity in grid.cells():
                if kind in (options.kind or [kind]) and oddity in (options.oddity or [oddity]):
                    tamper = BREAKS[options.broken] if options.broken else None
                    cell = grid.measure(head, naming, kind, oddity, tamper)
                    if cell is not None:
                        print(f"{head} {naming} {kind} {oddity} {cell.error:.0e}", file=sys.stderr, flush=True)
                        yield cell


if __name__ == "__main__":
    sys.exit(main())
