"""Measure every way to sample and write it as tables: ``make sampling-grid``, into docs/compatibility.md.

Our LoRAs, fused at run time by the plain sum, against ComfyUI's stacked loaders, with the same noise. Exits with 1 when
a cell fails. ``--section NAME`` measures one section, and writes it to ``--output`` only.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

from ...conftest import HOST, REPO  # first: it makes ComfyUI importable
from .catalogue import SECTIONS, WAYS
from .flags import FLAGS, FlagCell, measure_flags, rows
from .table import table
from .ways import Cell, World, measure

PAGE = REPO / "docs" / "compatibility.md"
BEGIN = "<!-- made by `make sampling-grid`: do not edit below -->"
END = "<!-- made by `make sampling-grid`: do not edit above -->"
OPTIONS = "Options"
COSTLY = ("Samplers",)


def measured(sections: list[str]) -> list[Cell]:
    """The cells of these sections."""
    cells, worlds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            if way.section not in sections:
                continue
            if way.family not in worlds:
                worlds[way.family] = World(way.family, Path(folder))
            # How far the LoRAs move the picture is asked once a row of samplers: it costs a third of the time.
            asked = not cells or cells[-1].way.row != way.row or way.section != cells[-1].way.section
            cells.append(measure(way, worlds[way.family], moves=asked or way.section not in COSTLY))
            print(_line(cells[-1]), file=sys.stderr, flush=True)
    return cells


def _line(cell: Cell) -> str:
    way = cell.way
    return f"{way.section}: {way.row}, {way.column}: {cell.error:.1e} {cell.failure or cell.core_refuses}".rstrip()


def with_table(page: str, text: str) -> str:
    """The page with this text between our marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the lines\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=[*SECTIONS, OPTIONS], help="only this one; repeatable")
    parser.add_argument("--output", type=Path, help="a file for the tables, instead of the page")
    options = parser.parse_args()
    if options.section and not options.output:
        parser.error("a part of the tables needs --output")
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    began, sections = time.monotonic(), options.section or [*SECTIONS, OPTIONS]
    cells = measured(sections)
    flagged: list[FlagCell] = [measure_flags(flags) for flags in FLAGS] if OPTIONS in sections else []
    minutes = (time.monotonic() - began) / 60
    made = f"Made with ComfyUI {HOST.version}, in {minutes:.0f} minutes on a CPU."
    text = f"{made} {table(cells, list(rows(flagged)) if flagged else [])}" if cells else "\n".join(rows(flagged))
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    else:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    failed = [_line(cell) for cell in cells if not cell.passed]
    failed += [f"{' '.join(c.flags)}: {c.said or c.text}" for c in flagged if not c.passed]
    for line in failed:
        print(f"FAILED {line}")
    print(f"{len(cells) + len(flagged)} cells, {len(failed)} failed: {options.output or PAGE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
