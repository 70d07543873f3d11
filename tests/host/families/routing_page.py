"""Measure the whole grid of invariances and write it as a table: ``make routing-grid``.

Every family of models that ComfyUI knows, built small and random, with two LoRAs on all its layers, under policies and
settings that measure. Exits with 1 when a cell fails.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from made_pages import as_called, ended

from ...conftest import HOST, REPO  # first: it makes ComfyUI importable
from .catalogue import FAMILIES
from .routing import ALLOWED, KINDS, SETTINGS, Cell, measure_row

COMMAND = "make routing-grid"
ABOUT = """\
# Families and policies

Made by `{command}` with ComfyUI {version}. Do not edit.

Each family of models is built small, with random weights, from ComfyUI's own classes, and sampled for two steps with
classifier-free guidance and two plain LoRA files on every linear and convolution layer. A cell shows the largest of
four errors, of the output's range: a batch of two against its members alone; prompts packed into one call against one
prompt a call; a run against its replayed plan; and of the weights, before a run that was frozen half-way against
after it. {allowed:.0e} is allowed. What ComfyUI's own two stacked loaders do not keep to a tenth of that is left out.
Two things are not asked for: a plan keeps the mean over tokens (*token*: no replay), and frozen weights are those of
the whole batch (*freeze*: no batch).

*all*: kl_soft with attention groups, layer prior, cap, even_out and smoothing. *Moved*: how far the LoRAs move the
output, of its range."""

# The same measurement on the code of `4cca712~1`, where the first dimension was taken for the batch: the largest error,
# and whether a run replayed there.
BEFORE = {
    "PixelDiTT2I": (0.217, True),
    "HiDream": (0.094, False),
    "PixArtAlpha": (0.054, False),
    "CosmosT2V": (0.231, True),
    "HunyuanDiT": (0.452, False),
    "Hunyuan3Dv2_1": (0.691, False),
}
ABOUT_BEFORE = """\
## Before and after

Layers whose first dimension is not the batch (pixel blocks in chunks, experts that are handed the tokens of both
prompts, the sequence first, one row for all) were decided as if it were. The same cells at `4cca712~1`:"""


def page(rows: list[list[Cell]], version: str, command: str) -> str:
    """The table, and what its columns are."""
    cells = [cell for row in rows for cell in row]
    lines = [
        *ABOUT.format(command=command, version=version, allowed=ALLOWED).splitlines(),
        "",
        f"{len(cells)} cells, {sum(not cell.passed for cell in cells)} failed. Largest error: "
        f"{max(cell.worst for cell in cells):.1e}.",
        "",
        f"| family | moved | {' | '.join(SETTINGS)} | left out |",
        f"|{' --- |' * (len(SETTINGS) + 3)}",
    ]
    for row in rows:
        left_out = [kind for kind in KINDS if all(cell.errors[kind] is None for cell in row)]
        shown = [f"{cell.worst:.0e}" if cell.passed else f"**FAILED {cell.worst:.0e}**" for cell in row]
        lines.append(f"| {row[0].family} | {row[0].moved:.2f} | {' | '.join(shown)} | {', '.join(left_out)} |")
    told = [row for row in rows if row[0].family in BEFORE]
    if not told:
        return "\n".join([*lines, ""])
    lines += [
        "",
        *ABOUT_BEFORE.splitlines(),
        "",
        "| family | largest error before | replayed before | largest error now |",
        "| --- | --- | --- | --- |",
    ]
    for row in told:
        error, replayed = BEFORE[row[0].family]
        now = max(cell.worst for cell in row)
        lines.append(f"| {row[0].family} | {error:.3f} | {'yes' if replayed else 'no: an error'} | {now:.0e} |")
    return "\n".join([*lines, ""])


def measured(name: str) -> list[Cell]:
    """A family's row, in a process of its own."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return measure_row(name, Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="only this one; may be given several times")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "routing-grid.md")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="families at a time")
    options = parser.parse_args()
    names = options.family or [name for name, family in FAMILIES.items() if family.in_host]
    rows = []
    command = as_called(COMMAND, family=options.family)
    # Forked: a fresh process would find the tests of ComfyUI for ours.
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=8) as pool:
        for row in pool.imap(measured, names):
            rows.append(row)
            print(row[0].family, f"{max(cell.worst for cell in row):.0e}", file=sys.stderr, flush=True)
            options.output.write_text(page(rows, HOST.version, command))
    cells = [cell for row in rows for cell in row]
    failed = [f"{cell.family} {cell.setting}: {cell.errors}" for cell in cells if not cell.passed]
    return ended(f"{len(cells)} cells", failed, options.output)


if __name__ == "__main__":
    sys.exit(main())
