"""What does deciding finer add to the best fixed schedule, with files of every kind: docs/benchmarks/router.md.

    make bench-router                          # shipped files only, an hour of a core
    make bench-router ARGS="--subjects 4"      # the first four of the fresh split: half of that
    make bench-router ARGS="--only test"       # the ways among which is chosen, to the console; writes no document

Pictures are kept in output/router/: a run that was cut goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from repo_paths import OUTPUT, REPO

from ..host import enter_host
from .bench_quality import FIRST_SEEDS, measure, pairs_of
from .judging.verdicts import Bench
from .methods.deciding import loudness
from .methods.policies import parse_method
from .methods.runs import Entry, Pair, Runs, Store
from .tables import router
from .tables.quality_doc import write
from .world.small_world import SmallWorld

SPLITS = ("test", "fresh")


def levels(small: SmallWorld, pairs: Sequence[Pair], seed: int) -> tuple[float, float]:
    """The log ratio of energies, subject over style, that `recommended` measures, as its mean over pairs, layers and
    steps; and how far that is above what the files say."""
    from lora_conductor.host.fusing import record_of_latent

    found = []
    for pair in pairs:
        files = [small.lora(role, name) for role, name in zip(("subject", "style"), pair, strict=True)]
        model = parse_method("recommended")(small.model, *files)
        scores = record_of_latent(model, small.sample(model, *pair, [seed])).scores.log()
        found.append((float((scores[0] - scores[1]).mean()), loudness(model)))
    measured, told = (mean(each) for each in zip(*found, strict=True))
    return measured, measured - told


def rows(split: str, ways: Mapping[str, str]) -> list[Entry]:
    """What is sampled of a split; ways are those of ``router.ladder``."""
    if split == "fresh":
        return router.entries(ways, tuple(router.FILES_OF))
    return [
        *router.entries({**ways, **router.FINER}, router.TRIED_ON),
        *router.entries(router.PROMPTS, ("as shipped",)),
    ]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SPLITS, help="its pairs alone, to the console")
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    parser.add_argument("--subjects", type=int, help="only the first so many of the fresh split")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the document is written to")
    parser.add_argument(
        "--store", type=Path, default=OUTPUT / "router" / "pictures.jsonl", help="where pictures are kept"
    )
    asked = parser.parse_args(given)
    enter_host()
    runs, bench = Runs(SmallWorld(asked.world), Store(asked.store)), Bench.load(asked.world, None)
    pairs = {"test": pairs_of("test"), "fresh": pairs_of("fresh", asked.subjects)}
    seeds = {split: range(FIRST_SEEDS[split], FIRST_SEEDS[split] + 1) for split in SPLITS}
    found = {"test": levels(runs.small, pairs["test"], seeds["test"][0])}
    ways, told = router.ladder(*found["test"]), {}
    for split, tell in (("test", router.of_test), ("fresh", router.of_fresh)):
        if asked.only in (None, split):
            told[split] = tell(measure(runs, bench, rows(split, ways), pairs[split], seeds[split], split), list(ways))
    if asked.only is not None:
        print("\n".join(told[asked.only]))
        return
    path = asked.docs / "benchmarks" / "router.md"
    options = "" if asked.subjects is None else f' ARGS="--subjects {asked.subjects}"'
    found["fresh"] = levels(runs.small, pairs["fresh"], seeds["fresh"][0])
    write(router.page(told, found, f"make bench-router{options}", pairs, seeds), path)
    print(path)


if __name__ == "__main__":
    main()
