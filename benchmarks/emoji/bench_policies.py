"""Which policy fuses best: the small world's judge on subject, style, and both at once.

    python -m benchmarks.emoji.bench_policies --world FOLDER                 # the standard table, tuning pairs
    python -m benchmarks.emoji.bench_policies --world FOLDER "core:1/1.5" "kl_soft(temperature=1.0,balance=-2)" \
        "1/2:paper" --subjects test --seeds 4

How a method is written: see methods/policies.py. The published tables are bench_quality.py's; this is for trying things
out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..host import enter_host
from .judging.evaluation import ceiling, evaluate
from .judging.judge import Judge
from .methods.policies import Maker, parse_method
from .tables.contact_sheet import contact_sheet
from .tables.policies import HEADER, compared, row
from .world.files import ARCHIVE
from .world.kinds import add_option
from .world.pictures import load_pictures
from .world.small_world import SmallWorld
from .world.splits import chosen

STANDARD = (
    "core:1/0", "core:0/1", "core:1/1", "core:.7/1.3", "core:1/1.5", "core:1/2", "paper", "kl_soft", "recommended",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(STANDARD))
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    add_option(parser)
    parser.add_argument("--subjects", default="tune", help="a split (tune, test, fresh), or names with commas")
    parser.add_argument("--styles", help="names with commas; default: the split's, or those of the emoji sets")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, help="folder for sheet.png and results.json")
    arguments = parser.parse_args()
    enter_host()
    small, judge = SmallWorld(arguments.world, arguments.kind), Judge.load()
    subjects, styles = chosen(arguments.subjects, arguments.styles)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    methods = {text: parse_method(text) for text in arguments.methods}

    print(f"{len(subjects)} subjects x {len(styles)} styles x {len(seeds)} seeds\n{HEADER}", flush=True)
    results = {}
    for text, make in methods.items():

        def fused(subject: str, style: str, make: Maker = make) -> Any:
            return make(small.model, small.lora("subject", subject), small.lora("style", style))

        results[text] = evaluate(small, fused, judge.score, subjects, styles, seeds)
        print(row(text, results[text], len(styles)), flush=True)
    print("\n".join(compared(results, len(seeds))))
    columns = {label: result.pictures[:: len(seeds)] for label, result in results.items()}
    if arguments.world is not None and (arguments.world / ARCHIVE).is_file():
        true = ceiling(small, judge.score, load_pictures(arguments.world), subjects, styles)
        print(row("truth through the autoencoder", true, len(styles)))
        columns["truth"] = true.pictures
    if arguments.out is not None:
        contact_sheet(columns, arguments.out / "sheet.png")
        figures = {label: result.means() for label, result in results.items()}
        (arguments.out / "results.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
