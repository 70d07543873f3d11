"""Measure every way to sample and write it as tables: ``make sampling-grid``, into docs/compatibility.md.

Our LoRAs, fused at run time by the plain sum, against ComfyUI's stacked loaders, with the same noise. Exits with 1 when
a cell fails. ``--section NAME`` measures one section anew; the others stay as measured before (output/sampling.json,
written cell by cell). ``--missing`` goes on where a call was stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from made_pages import ended, put_table
from repo_paths import OUTPUT

from ...conftest import HOST, REPO  # first: it makes ComfyUI importable
from .catalogue import SECTIONS, WAYS
from .flags import FLAGS, FlagCell, measure_flags, rows
from .table import table
from .ways import Cell, Way, World, measure

PAGE = REPO / "docs" / "compatibility.md"
COMMAND = "make sampling-grid"
OPTIONS = "Options"
COSTLY = ("Samplers",)
MEASURED = OUTPUT / "sampling.json"
Place = tuple[str, str, str]


def place_of(way: Way) -> Place:
    return way.section, way.row, way.column


def measured(sections: Collection[str], known: Collection[Place]) -> Iterator[Cell]:
    """The cells of these sections, without those that are known."""
    worlds: dict[str, World] = {}
    row: tuple[str, str] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            if way.section not in sections or place_of(way) in known:
                continue
            if way.family not in worlds:
                worlds[way.family] = World(way.family, Path(folder))
            # How far the LoRAs move the picture is asked once a row of samplers: it costs a third of the time.
            asked = way.section not in COSTLY or row != (way.section, way.row)
            row = way.section, way.row
            yield measure(way, worlds[way.family], moves=asked)


def line_of(cell: Cell) -> str:
    """A cell for the terminal."""
    said = cell.failure or cell.core_refuses
    return f"{cell.way.section}: {cell.way.row}, {cell.way.column}: {cell.error:.1e} {said}".rstrip()


def before() -> tuple[dict[Place, Cell], dict[tuple[str, ...], FlagCell]]:
    """What earlier calls have measured, of the cells that there still are."""
    if not MEASURED.exists():
        return {}, {}
    kept: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    ways = {place_of(way): way for way in WAYS}
    cells = {tuple(place): values for place, values in kept["cells"]}
    flags = [FlagCell(**{**values, "flags": tuple(values["flags"])}) for values in kept["flags"]]
    found = {place: Cell(ways[place], **values) for place, values in cells.items() if place in ways}
    return found, {cell.flags: cell for cell in flags if cell.flags in FLAGS}


def keep(cells: dict[Place, Cell], flags: dict[tuple[str, ...], FlagCell]) -> None:
    """Write down what was measured, beside what is there: another call may measure other sections meanwhile."""
    kept_cells, kept_flags = before()
    cells, flags = kept_cells | cells, kept_flags | flags
    plain = [
        (place, {name: value for name, value in vars(cell).items() if name != "way"}) for place, cell in cells.items()
    ]
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text(
        json.dumps({"cells": plain, "flags": [asdict(cell) for cell in flags.values()]}, indent=1), encoding="utf-8"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=[*SECTIONS, OPTIONS], help="only this one; repeatable")
    parser.add_argument("--missing", action="store_true", help="only what has not been measured yet")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    began, sections = time.process_time(), options.section or [*SECTIONS, OPTIONS]
    known, known_flags = before() if options.missing else ({}, {})
    for cell in measured(sections, known):
        keep({place_of(cell.way): cell}, {})
        print(line_of(cell), file=sys.stderr, flush=True)
    for given in FLAGS if OPTIONS in sections else ():
        if given not in known_flags:
            keep({}, {given: measure_flags(given)})
    cells, flags = before()
    ordered = [cells[place_of(way)] for way in WAYS if place_of(way) in cells]
    shown = [flags[given] for given in FLAGS if given in flags]
    text = f"Made with ComfyUI {HOST.version}, on a CPU. {table(ordered, list(rows(shown)) if shown else [])}"
    put_table(PAGE, COMMAND, text)
    failed = [line_of(cell) for cell in ordered if not cell.passed]
    failed += [f"{' '.join(cell.flags)}: {cell.said or cell.text}" for cell in shown if not cell.passed]
    minutes = math.ceil((time.process_time() - began) / 60)
    return ended(f"{len(ordered) + len(shown)} cells, {minutes} minutes of one core", failed, PAGE)


if __name__ == "__main__":
    sys.exit(main())
