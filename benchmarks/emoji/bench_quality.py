"""Every policy side by side in the small world, judged against ground truth: docs/benchmarks/quality.md.

    make bench-quality ARGS="--world FOLDER"               # the table of the fresh split
    make bench-quality ARGS="--world FOLDER --ablations"   # one setting at a time on the tune pairs: ablations.md
    make bench-quality ARGS=--quick                        # minutes, shipped files only; writes no document
    make bench-quality ARGS="--world FOLDER --row craft"   # `recommended` and this row, burn too; no document

Pictures are sampled by the real ComfyUI and this pack, and kept in output/quality/: a run that was cut goes on where
it was. FOLDER holds emoji64.npz and the LoRAs that are not shipped; without the former there is no row with metric
guidance, no ceiling and no count of intruders. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from repo_paths import OUTPUT, REPO

from ..host import enter_host
from .judging.outsider import Outsider
from .judging.verdicts import Bench, Verdicts
from .methods.guidance import Encoders, parse_guidance
from .methods.runs import Entry, Pair, Runs, Store
from .tables import ablations, burn, quality_rows
from .tables.quality_doc import Quality, table, write, write_all
from .world import splits
from .world.files import ARCHIVE
from .world.kinds import BASE, add_option
from .world.pictures import Pictures, load_pictures
from .world.small_world import SmallWorld

FIRST_SEEDS = {"tune": 300, "test": 500, "fresh": 1000}
STORE = OUTPUT / "quality" / "pictures.jsonl"
SHEET = ("recommended", "recommended + guidance", "stacked 1/1", "paper", "k_lora", "np_lora")


def pairs_of(split: str, subjects: int | None = None, styles: str | None = None) -> list[Pair]:
    """All pairs of a split, style by style; or of its first few subjects, or in some styles (names with commas)."""
    _, chosen = splits.chosen(split, styles)
    return [(subject, style) for style in chosen for subject in splits.SUBJECTS[split][:subjects]]


def sample(runs: Runs, entries: Sequence[Entry], pairs: Sequence[Pair], seeds: Sequence[int], what: str) -> None:
    """Make what is missing, with a bar on stderr."""
    missing = sum(len(runs.missing(entry, pair, seeds)) for entry in entries for pair in pairs)
    with tqdm(total=missing, desc=what, unit="picture", file=sys.stderr, disable=not missing) as bar:
        runs.sample(entries, pairs, seeds, bar.update)


def measure(
    runs: Runs, bench: Bench, entries: Sequence[Entry], pairs: Sequence[Pair], seeds: Sequence[int], what: str
) -> dict[str, Verdicts]:
    """Sample and judge rows; by label."""
    sample(runs, entries, pairs, seeds, what)
    return {entry.label: bench.of(runs, entry, pairs, seeds) for entry in entries}


def ceiling(small: SmallWorld, bench: Bench, pictures: Pictures, pairs: Sequence[Pair]) -> Verdicts:
    """Of the true pictures through the autoencoder."""
    return bench.verdicts([small.reconstruct(pictures.picture(*pair)[None]) for pair in pairs], pairs)


def quality(runs: Runs, bench: Bench, pictures: Pictures | None, arguments: argparse.Namespace) -> Quality:
    """Everything of the document, sampled and judged."""
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    pairs = pairs_of(arguments.split, arguments.subjects, arguments.styles)
    grids = quality_rows.grid(runs.small.kind.cfg)
    tuned, grid = quality_rows.TUNED[: len(grids)], {}
    tune_seeds = range(FIRST_SEEDS["tune"], FIRST_SEEDS["tune"] + 4)
    if arguments.quick:
        rows, doubled = quality_rows.quick(), []
    elif arguments.row:
        try:
            rows, doubled = quality_rows.some(arguments.row), []
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
    else:
        if has_loras(runs.small, "tune"):
            grid = measure(runs, bench, [*chain(*grids)], pairs_of("tune"), tune_seeds, "tuning the stack")
            tuned = quality_rows.best(grids, grid)
        rows = quality_rows.headline(tuned, guided=runs.make_plan is not None)
        doubled = quality_rows.doubled(tuned)
    beside = [] if pictures is None or arguments.quick else [burn.STYLE_ALONE]
    every = {entry.label: entry for entry in [*rows, *(entry for _, group in doubled for entry in group), *beside]}
    verdicts = measure(runs, bench, list(every.values()), pairs, seeds, arguments.split)
    top = None if pictures is None else ceiling(runs.small, bench, pictures, pairs)
    return Quality(
        command_of(arguments),
        runs.sampling,
        arguments.split,
        pairs,
        seeds,
        rows,
        doubled,
        verdicts,
        top,
        tuned,
        grid,
        tune_seeds,
        burnt(runs, pictures, rows, pairs, seeds) if beside and pictures is not None else {},
    )


def burnt(
    runs: Runs, pictures: Pictures, rows: Sequence[Entry], pairs: Sequence[Pair], seeds: Sequence[int]
) -> dict[str, burn.Burnt]:
    """By label, of what has been sampled and judged: burn, and what a judge says that nobody here trained."""
    outsider = Outsider(pictures)
    truth = {pair: runs.small.reconstruct(pictures.picture(*pair)[None]) for pair in pairs}
    found = {row.label: burn.burnt(runs, row, truth, outsider, pairs, seeds) for row in [*rows, burn.STYLE_ALONE]}
    alone = [runs.pictures(burn.STYLE_ALONE, pair, seeds) for pair in pairs]
    true = [truth[pair].expand(len(seeds), -1, -1, -1) for pair in pairs]
    return found | {burn.TRUTH: burn.of_pictures(true, alone, truth, outsider, pairs)}


def columns(q: Quality, runs: Runs, pictures: Pictures | None) -> dict[str, Any]:
    """For the contact sheet: the first seed's pictures of a few methods, the best rival among them; and the truth."""
    shown = [row for row in q.rows if row.label in (*SHEET, *(row.label for row in q.tuned), q.next_best().label)]
    # "recommended" is wider than a picture.
    sheet = {
        row.label.replace("recommended", "ours"): torch.cat([runs.pictures(row, pair, q.seeds[:1]) for pair in q.pairs])
        for row in shown
    }
    if pictures is not None:
        sheet["truth"] = torch.stack([pictures.picture(*pair) for pair in q.pairs])
    return sheet


def has_loras(small: SmallWorld, split: str) -> bool:
    """Whether the LoRAs of a split are at hand."""
    try:
        return all(
            small.lora(*which) for pair in pairs_of(split) for which in zip(("subject", "style"), pair, strict=True)
        )
    except FileNotFoundError:
        return False


def command_of(arguments: argparse.Namespace) -> str:
    """The command that repeats this run."""
    flags = ["--quick"] if arguments.quick else []
    flags += ["--world FOLDER"] if arguments.world is not None else []
    flags += [] if arguments.kind is BASE else [f"--world-kind {arguments.kind.name}"]
    flags += [f"--steps {arguments.steps}"] if arguments.steps else []
    flags += ["--ablations"] if arguments.ablations else [f"--split {arguments.split}"]
    flags += [f"--subjects {arguments.subjects}"] if arguments.subjects else []
    flags += [f"--styles {arguments.styles}"] if arguments.styles else []
    flags += [f"--row '{label}'" for label in arguments.row or ()]
    flags += [f"--seeds {arguments.seeds}", f"--first-seed {arguments.first_seed}"]
    return f'make bench-quality ARGS="{" ".join(flags)}"'


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what depends on other flags is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows on a few pairs; writes no document")
    parser.add_argument("--row", action="append", help="only this one and `recommended`; may be given several times")
    parser.add_argument("--ablations", action="store_true", help="one setting at a time, on the tune pairs")
    parser.add_argument("--split", choices=list(FIRST_SEEDS), help="default: fresh; with --quick: test")
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    add_option(parser)
    parser.add_argument("--subjects", type=int, help="only the first so many of the split")
    parser.add_argument("--styles", help="names with commas; default: all of the split")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair")
    parser.add_argument("--first-seed", type=int, help="default: the split's own")
    parser.add_argument("--steps", type=int, default=0, help="of sampling; default: the world's")
    parser.add_argument("--store", type=Path, default=STORE, help="where pictures are kept")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the documents are written to")
    found = parser.parse_args(arguments)
    found.split = "tune" if found.ablations else found.split or ("test" if found.quick else "fresh")
    found.first_seed = FIRST_SEEDS[found.split] if found.first_seed is None else found.first_seed
    return found


def guidance(small: SmallWorld, pictures: Pictures) -> Any:
    """(text of a guidance method) -> its plans."""
    encoders = Encoders.load()
    return lambda text: parse_guidance(text, small, pictures, encoders)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(given)
    enter_host()
    small, pictures = SmallWorld(arguments.world, arguments.kind), None
    if arguments.world is not None and (arguments.world / ARCHIVE).is_file():
        pictures = load_pictures(arguments.world)
    else:
        print("No emoji64.npz: no metric guidance, no ceiling, no intruders.", file=sys.stderr)
    runs = Runs(small, Store(arguments.store), arguments.steps, pictures and guidance(small, pictures))
    bench = Bench.load(arguments.world, pictures)
    if arguments.ablations:
        pairs = pairs_of("tune", arguments.subjects, arguments.styles)
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        verdicts = measure(runs, bench, ablations.rows(), pairs, seeds, "ablations")
        path = arguments.docs / "benchmarks" / f"ablations{arguments.kind.suffix}.md"
        write(ablations.document(verdicts, command_of(arguments), runs.sampling, pairs, seeds), path)
        print(path)
        print(json.dumps(ablations.as_json(verdicts)))
        return
    q = quality(runs, bench, pictures, arguments)
    print("\n".join(table(q)))
    if arguments.row:
        print(*burn.sections(q.burnt, quality_rows.RECOMMENDED) if q.burnt else (), sep="\n\n")
    elif not arguments.quick:
        print(write_all(q, columns(q, runs, pictures), arguments.docs, arguments.kind.suffix))
    print(json.dumps(q.json()))


if __name__ == "__main__":
    main()
