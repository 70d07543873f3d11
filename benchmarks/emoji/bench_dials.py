"""Are strengths dials? Each turned from 0 to 2, in the small world: docs/benchmarks/dials.md.

    make bench-dials                          # shipped files only, half an hour of a core
    make bench-dials ARGS="--split fresh"     # other pairs

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
from .world.small_world import SmallWorld


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="test")
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    parser.add_argument("--subjects", type=int, help="only the first so many of the split")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each pair")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the document is written to")
    asked = parser.parse_args(given)
    enter_host()
    runs = Runs(SmallWorld(asked.world), Store(OUTPUT / "dials" / "pictures.jsonl"))
    pairs = pairs_of(asked.split, asked.subjects)
    seeds = range(FIRST_SEEDS[asked.split], FIRST_SEEDS[asked.split] + asked.seeds)
    bench = Bench.load(asked.world, None)
    entries = dials.entries()
    sample(runs, entries, pairs, seeds, "dials")
    turned = {
        (method, role): [
            dials.Point.of(runs, bench, entry, dials.without(role), pairs, seeds)
            for entry in dials.turned(method, role)
        ]
        for method in dials.METHODS
        for role in dials.ROLES
    }
    loud = measure(runs, bench, dials.loud(), pairs, seeds, "loud files")
    command = f'make bench-dials ARGS="--split {asked.split} --seeds {asked.seeds}"'
    print(dials.write(turned, loud, command, pairs, seeds, asked.docs))


if __name__ == "__main__":
    main()
