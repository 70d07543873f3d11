"""Do fused pictures burn, and what does a judge say that nobody here trained: docs/benchmarks/burn.md.

    make bench-burn ARGS="--world FOLDER"

FOLDER needs the pictures alone (two minutes, from public packages: ``python -m benchmarks.emoji.world.archive --out
FOLDER``). Sampled pictures are kept in output/quality/, with those of the quality table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from repo_paths import REPO

from ..host import enter_host
from .bench_quality import FIRST_SEEDS, STORE, pairs_of, sample
from .judging.outsider import Outsider
from .methods.runs import Runs, Store
from .tables import burn
from .world.pictures import load_pictures
from .world.small_world import SmallWorld


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder with emoji64.npz")
    parser.add_argument("--split", choices=list(FIRST_SEEDS), default="fresh")
    parser.add_argument("--subjects", type=int, help="only the first so many of the split")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each pair")
    parser.add_argument("--docs", type=Path, default=REPO / "docs", help="folder the document is written to")
    asked = parser.parse_args(given)
    enter_host()
    small, pictures = SmallWorld(asked.world), load_pictures(asked.world)
    runs, pairs = Runs(small, Store(STORE)), pairs_of(asked.split, asked.subjects)
    seeds = range(FIRST_SEEDS[asked.split], FIRST_SEEDS[asked.split] + asked.seeds)
    rows = burn.entries()
    sample(runs, [burn.STYLE_ALONE, *rows], pairs, seeds, "burn")
    outsider = Outsider(pictures)
    truth = {pair: small.reconstruct(pictures.picture(*pair)[None]) for pair in pairs}
    found = {row.label: burn.burnt(runs, row, truth, outsider, pairs, seeds) for row in rows}
    alone = [runs.pictures(burn.STYLE_ALONE, pair, seeds) for pair in pairs]
    found[burn.STYLE_ALONE.label] = burn.of_pictures(alone, alone, truth, outsider, pairs)
    true = [truth[pair].expand(len(seeds), -1, -1, -1) for pair in pairs]
    found[burn.TRUTH] = burn.of_pictures(true, alone, truth, outsider, pairs)
    options = "" if asked.split == "fresh" else f" --split {asked.split}"
    options += "" if asked.subjects is None else f" --subjects {asked.subjects}"
    command = f'make bench-burn ARGS="--world FOLDER{options} --seeds {asked.seeds}"'
    text = burn.page(found, command, asked.split, len(pairs), asked.seeds)
    file = asked.docs / burn.PAGE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
