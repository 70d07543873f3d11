"""Are strengths dials? Each turned from 0 to 2, in the small world: docs/benchmarks/dials.md.

    make bench-dials                          # shipped files only, half an hour of a core
    make bench-dials ARGS="--split fresh"     # other pairs
    make bench-dials ARGS="--world FOLDER --world-kind distilled"     # dials-distilled.md

Pictures are kept in output/dials/: a run that was cut goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from repo_paths import OUTPUT, REPO

from ..host import enter_host
from .bench_quality import FIRST_SEEDS, measure, pairs_of, sample
from .judging.verdicts import Bench
from .methods.runs import Runs, Store
from .tables import dials
from .world.kinds import BASE, add_option
from .world.small_world import SmallWorld


def strengths(text: str) -> tuple[float, ...]:
    """Of a dial, numbers with commas; 0 and 1 are always among them."""
    found = tuple(sorted({0.0, 1.0, *(float(part) for part in text.split(","))}))
    if found[0] < 0:
        raise ValueError(f"a strength below 0: {found[0]}")
    return found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="test")
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    add_option(parser)
    parser.add_argument("--subjects", type=int, help="only the first so many of the split")
    parser.add_argument("--steps", type=int, default=0, help="of sampling; default: the world's")
    parser.add_argument("--dial", type=strengths, default=dials.DIAL, help="strengths with commas")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each pair")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the document is written to")
    asked = parser.parse_args(given)
    enter_host()
    runs = Runs(SmallWorld(asked.world, asked.kind), Store(OUTPUT / "dials" / "pictures.jsonl"), asked.steps)
    pairs = pairs_of(asked.split, asked.subjects)
    seeds = range(FIRST_SEEDS[asked.split], FIRST_SEEDS[asked.split] + asked.seeds)
    bench = Bench.load(asked.world, None)
    entries = dials.entries(asked.dial)
    sample(runs, entries, pairs, seeds, "dials")
    turned = {
        (method, role): [
            dials.Point.of(runs, bench, entry, dials.without(role), pairs, seeds)
            for entry in dials.turned(method, role, asked.dial)
        ]
        for method in dials.METHODS
        for role in dials.ROLES
    }
    loud = measure(runs, bench, dials.loud(), pairs, seeds, "loud files")
    flags = "" if asked.world is None else "--world FOLDER "
    flags += "" if asked.kind is BASE else f"--world-kind {asked.kind.name} "
    flags += f"--subjects {asked.subjects} " if asked.subjects else ""
    flags += f"--steps {asked.steps} " if asked.steps else ""
    flags += "" if asked.dial == dials.DIAL else f"--dial {','.join(f'{s:g}' for s in asked.dial)} "
    command = f'make bench-dials ARGS="{flags}--split {asked.split} --seeds {asked.seeds}"'
    suffix = asked.kind.suffix
    print(dials.write(turned, loud, command, runs.sampling, pairs, seeds, asked.docs, asked.dial, suffix))


if __name__ == "__main__":
    main()
