"""Does the default fit a model at CFG 1? The guidance-distilled small world, judged: docs/benchmarks/distilled.md.

    make bench-distilled ARGS="--world FOLDER"             # fresh pairs, 16, 8 and 4 steps
    make bench-distilled ARGS="--world FOLDER --world-kind distilled-own --split test"   # LoRAs trained on that model

FOLDER has the distilled model, which `make bench-world` and `python -m benchmarks.emoji.world.distilled` make, and
emoji64.npz, for the true pictures of the contact sheet. Pictures are kept in output/distilled/: a run that was cut goes
on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from repo_paths import OUTPUT, REPO

from ..host import enter_host
from .bench_quality import FIRST_SEEDS, measure, pairs_of
from .judging.verdicts import Bench
from .methods.runs import Runs, Store
from .tables import distilled
from .tables.contact_sheet import contact_sheet
from .tables.quality_doc import write
from .world.files import ARCHIVE
from .world.kinds import DISTILLED, add_option
from .world.pictures import load_pictures
from .world.small_world import SmallWorld


def numbers(text: str) -> tuple[int, ...]:
    """Numbers of steps, with commas."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError(f"fewer steps than one: {text}")
    return found


def command_of(asked: argparse.Namespace) -> str:
    """The command that repeats this run."""
    flags = ["--world FOLDER"] if asked.world is not None else []
    flags += [] if asked.kind is DISTILLED else [f"--world-kind {asked.kind.name}"]
    flags += [f"--steps {','.join(map(str, asked.steps))}"] if asked.steps else []
    flags += [f"--subjects {asked.subjects}"] if asked.subjects else []
    flags += [f"--split {asked.split}", f"--seeds {asked.seeds}"]
    return f'make bench-distilled ARGS="{" ".join(flags)}"'


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder with the distilled model")
    add_option(parser)
    parser.set_defaults(kind=DISTILLED)
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="fresh")
    parser.add_argument("--subjects", type=int, help="only the first so many of the split")
    parser.add_argument("--steps", type=numbers, help="numbers of steps with commas; default: the world's")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each pair")
    parser.add_argument("--store", type=Path, default=OUTPUT / "distilled" / "pictures.jsonl")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the document is written to")
    asked = parser.parse_args(given)
    enter_host()
    small, store = SmallWorld(asked.world, asked.kind), Store(asked.store)
    pairs = pairs_of(asked.split, asked.subjects)
    seeds = range(FIRST_SEEDS[asked.split], FIRST_SEEDS[asked.split] + asked.seeds)
    bench, rows, tables, columns = Bench.load(asked.world, None), distilled.rows(), {}, {}
    for steps in asked.steps or asked.kind.steps:
        runs = Runs(small, store, steps)
        tables[runs.sampling] = measure(runs, bench, rows, pairs, seeds, f"{steps} steps")
        for row in rows:
            if row.label in distilled.SHOWN:
                shown = torch.cat([runs.pictures(row, pair, seeds[:1]) for pair in pairs])
                columns[f"{row.label.replace('recommended', 'ours')}, {steps}"] = shown
    if asked.world is not None and (asked.world / ARCHIVE).is_file():
        pictures = load_pictures(asked.world)
        columns["truth"] = torch.stack([pictures.picture(*pair) for pair in pairs])
    name = asked.kind.suffix.removeprefix("-")
    contact_sheet(columns, asked.docs / "images" / f"{name}.jpg", scale=1)
    text = distilled.document(tables, command_of(asked), asked.kind, asked.split, pairs, seeds, f"../images/{name}.jpg")
    page = asked.docs / "benchmarks" / f"{name}.md"
    write(text, page)
    print(page)


if __name__ == "__main__":
    main()
