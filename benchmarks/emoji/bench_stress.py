"""Does the default stand files as people make them? docs/benchmarks/stress.md.

    make bench-stress ARGS="--stress FOLDER"
    make bench-stress ARGS="--stress FOLDER --only 'attention alone'"     # one row of both tables, to the console

FOLDER has the LoRAs that `python -m benchmarks.emoji.world.stress` trains. Pictures are kept in output/stress/: a run
that was cut goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from repo_paths import OUTPUT, REPO

from ..host import enter_host
from .bench_quality import FIRST_SEEDS, measure, pairs_of
from .judging.verdicts import Bench, Verdicts
from .methods.policies import core_stacked
from .methods.runs import Runs, Store
from .tables import quality_rows, stress
from .tables.contact_sheet import contact_sheet
from .tables.quality_doc import write
from .world.small_world import SmallWorld
from .world.stress import ACCELERATING


def runs_of(arrangement: stress.Arrangement, folder: Path, store: Path) -> Runs:
    """A world with these files in place of the shipped ones."""
    small = SmallWorld()
    chosen = [folder / name for name in arrangement.folders]
    if absent := [path for path in chosen if not path.is_dir()]:
        raise SystemExit(f"error: no {absent[0]}: python -m benchmarks.emoji.world.stress --out {folder} makes it")
    small.folders = [*chosen, *small.folders]
    name = arrangement.label.replace(" ", "_").replace(",", "")
    if arrangement.accelerated:
        accelerating = folder / ACCELERATING
        small.model = core_stacked(1.0, 0.0)(small.model, accelerating, accelerating)
    return Runs(small, Store(store / f"{name}.jsonl"))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stress", type=Path, required=True, help="folder of `world.stress`")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair")
    parser.add_argument("--subjects", type=int, help="only the first so many")
    parser.add_argument("--only", choices=[each.label for each in stress.ARRANGEMENTS], help="this row; no document")
    parser.add_argument("--store", type=Path, default=OUTPUT / "stress", help="where pictures are kept")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the document is written to")
    asked = parser.parse_args(given)
    enter_host()
    pairs, bench = pairs_of("test", asked.subjects), Bench.load(None, None)
    seeds = range(FIRST_SEEDS["test"], FIRST_SEEDS["test"] + asked.seeds)
    found: dict[str, dict[str, Verdicts]] = {}
    columns: dict[str, Any] = {}
    for number, arrangement in enumerate(stress.ARRANGEMENTS, 1):
        if asked.only and arrangement.label != asked.only:
            continue
        runs, entries = runs_of(arrangement, asked.stress, asked.store), arrangement.entries()
        found[arrangement.label] = measure(runs, bench, entries, pairs, seeds, arrangement.label)
        for entry in entries:
            if entry.label in (stress.RECOMMENDED, quality_rows.STACKED):
                name = "ours" if entry.label == stress.RECOMMENDED else "stacked"
                shown = [runs.pictures(entry, pair, seeds[:1]) for pair in pairs]
                columns[f"{name} {number}"] = torch.cat(shown)
    if asked.only:
        print("\n".join([*stress.table(found), "", *stress.rates(found)]))
        return
    flags = f"--stress FOLDER --seeds {asked.seeds}" + (f" --subjects {asked.subjects}" if asked.subjects else "")
    sheet = asked.docs / "images" / "stress.jpg"
    contact_sheet(columns, sheet, scale=1)
    command = f'make bench-stress ARGS="{flags}"'
    page = asked.docs / "benchmarks" / "stress.md"
    write(stress.document(found, command, runs.sampling, pairs, seeds, f"../images/{sheet.name}"), page)
    print(page)


if __name__ == "__main__":
    main()
