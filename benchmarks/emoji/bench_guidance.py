"""What metric guidance does to the pictures, by its own encoders and by a judge it cannot see; and what it costs.

    python -m benchmarks.emoji.bench_guidance --world FOLDER                     # the standard table, tuning pairs
    python -m benchmarks.emoji.bench_guidance --world FOLDER none "x0(strength=0.4, every=6)" paper --subjects test

How a method is written: see methods/guidance.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..host import enter_host
from .judging.evaluation import evaluate
from .judging.guidance_costs import costs
from .judging.judge import Judge
from .judging.similarity import similarity_to_references
from .methods.guidance import Encoders, PlanMaker, guided, parse_guidance
from .methods.policies import parse_method
from .tables.contact_sheet import contact_sheet
from .tables.guidance import HEADER, row
from .world.pictures import load_pictures
from .world.small_world import SmallWorld
from .world.splits import chosen

STANDARD = (
    "none", "x0", "x0(every=1, strength=0.1)", "x0(every=1, strength=0.1, crops=3)",
    "x0(every=1, strength=0.1, adam=True)", "x0(every=1, strength=0.05, inner_steps=4)",
    "x0(every=1, strength=0.05, inner_steps=4, crops=3)", "x0(every=1, strength=0.1, time_travel=1)",
    "paper", "paper(mode='paper, VP scale')", "paper(paper_step=100)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(STANDARD))
    parser.add_argument("--world", type=Path, required=True, help="folder with emoji64.npz and the LoRAs")
    parser.add_argument("--policy", default="recommended", help="how the LoRAs are fused (see methods/policies.py)")
    parser.add_argument("--subjects", default="tune", help="a split (tune, test, fresh), or names with commas")
    parser.add_argument("--styles", help="names with commas; default: the split's, or those of the emoji sets")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each pair")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 leaves it out")
    parser.add_argument("--out", type=Path, help="folder for guidance.png and guidance_table.md")
    arguments = parser.parse_args()
    enter_host()
    small, judge, pictures = SmallWorld(arguments.world), Judge.load(), load_pictures(arguments.world)
    encoders, make_model = Encoders.load(), parse_method(arguments.policy)
    subjects, styles = chosen(arguments.subjects, arguments.styles)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    methods = dict.fromkeys(["none", *arguments.methods]) if arguments.rounds else dict.fromkeys(arguments.methods)
    plans = {text: parse_guidance(text, small, pictures, encoders) for text in methods}
    similarity = similarity_to_references(pictures, encoders)

    def measure(images: Tensor, subject: str, style: str) -> dict[str, Tensor]:
        return {**judge.score(images, subject, style), **similarity(images, subject, style)}

    cost: dict[str, tuple[float, float, float]] = {}
    if arguments.rounds:
        cost = costs(small, make_model, plans, arguments.rounds)
    lines, sheet, first = [HEADER], {}, None
    print(f"{len(subjects)} subjects x {len(styles)} styles x {len(seeds)} seeds\n{HEADER}", flush=True)
    for text, plan in plans.items():

        def model(subject: str, style: str, plan: PlanMaker = plan) -> Any:
            fused = make_model(small.model, small.lora("subject", subject), small.lora("style", style))
            return guided(fused, plan(subject, style), [])

        result = evaluate(small, model, measure, subjects, styles, seeds)
        first = first or result
        gain = result.gain(first, len(subjects) * len(styles))
        lines.append(row(text, result.means(), gain, cost.get(text)))
        # By number, in the table's order: the names are too long for the columns.
        sheet[str(len(sheet) + 1)] = result.pictures[:: len(seeds)]
        print(lines[-1], flush=True)
    sheet["truth"] = torch.stack([pictures.picture(subject, style) for style in styles for subject in subjects])
    if arguments.out is not None:
        contact_sheet(sheet, arguments.out / "guidance.png")
        (arguments.out / "guidance_table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
