"""What metric guidance does to the pictures, by its own encoders and by a judge it cannot see; and what it costs.

    python benchmarks/emoji/evaluate_guidance.py --world FOLDER                      # the standard table, tuning pairs
    python benchmarks/emoji/evaluate_guidance.py --world FOLDER none "x0(strength=0.4, every=6)" paper --subjects test

A method is `none`, `x0` or `paper`, with settings in brackets: those of GuidanceWindow (start, end, every), of
GuidanceOptions (inner_steps, crops, anchor, adam, max_displacement, time_travel, paper_step, ...), and strength,
subject, style of the sampler node. References are pictures that users have: the two drawings the subject LoRA was
trained on, and three other subjects in the style.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import functools
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import world
from data import Pictures, load_pictures
from judge import SUBJECT_STYLES, Judge
from methods import parse_method

STANDARD = (
    "none", "x0", "x0(every=1, strength=0.1)", "x0(every=1, strength=0.1, crops=3)",
    "x0(every=1, strength=0.1, adam=True)", "x0(every=1, strength=0.05, inner_steps=4)",
    "x0(every=1, strength=0.05, inner_steps=4, crops=3)", "x0(every=1, strength=0.1, time_travel=1)",
    "paper", "paper(mode='paper, VP scale')", "paper(paper_step=100)",
)  # fmt: skip
ENCODER_FILES = {name: world.ASSETS / "clip_vision" / f"emoji_{name}.safetensors" for name in ("clip", "dino")}
STYLE_SUBJECTS = ("koala", "cactus", "bell-with-slash")


@dataclass(frozen=True)
class Encoders:
    """The small world's guidance encoders."""

    clip: Any
    dino: Any

    @classmethod
    def load(cls) -> Encoders:
        from lora_conductor.host.vision.encoders import load_metric_encoder

        return cls(**{name: load_metric_encoder(str(path)) for name, path in ENCODER_FILES.items()})


PlanMaker = Callable[[str, str], Any]
"""(subject, style) -> GuidancePlan, or None for no guidance."""


def parse_guidance(text: str, small: world.SmallWorld, pictures: Pictures, encoders: Encoders) -> PlanMaker:
    """A method as written on the command line (see the module's docstring)."""
    from lora_conductor.guidance.schedules import GuidanceWindow
    from lora_conductor.host.guiding.plan import GuidanceOptions, GuidancePlan

    found = re.fullmatch(r"(none|x0|paper)(?:\((.*)\))?", text.strip())
    if not found:
        raise ValueError(f"unknown method {text!r}; methods are none, x0(...), paper(...)")
    call = ast.parse(f"f({found[2] or ''})", mode="eval").body
    assert isinstance(call, ast.Call)
    given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    settings = {"mode": found[1], **defaults(), **given}
    groups = [
        {field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings}
        for kind in (GuidanceWindow, GuidanceOptions)
    ]
    strengths = [
        settings.pop(name, default) for name, default in (("subject", 1.0), ("style", 1.0), ("strength", None))
    ]
    if settings.keys() - {"mode"}:
        raise ValueError(f"{text}: unknown settings {', '.join(settings)}")

    def make(subject: str, style: str) -> Any:
        if found[1] == "none":
            return None
        return GuidancePlan(
            *strengths,
            GuidanceWindow(**groups[0]),
            vae=small.vae,
            subject_image=torch.stack([pictures.picture(subject, name) for name in SUBJECT_STYLES]).movedim(1, -1),
            style_image=torch.stack([pictures.picture(name, style) for name in STYLE_SUBJECTS]).movedim(1, -1),
            clip_encoder=encoders.clip,
            dino_encoder=encoders.dino,
            options=GuidanceOptions(**groups[1]),
        )

    return make


@functools.cache
def defaults() -> dict[str, float]:
    """MetricGuidedSampler's strengths and window. In the host only."""
    from lora_conductor.nodes.sampler import MetricGuidedSampler

    node = {item.id: item.default for item in MetricGuidedSampler.define_schema().inputs if hasattr(item, "default")}
    names = {"subject": "subject_strength", "style": "style_strength"}
    names |= {name: f"guidance_{name}" for name in ("strength", "start", "end", "every")}
    return {name: node[known] for name, known in names.items()}


@dataclass(frozen=True)
class Result:
    """A method's pictures [pairs x seeds, 3, 64, 64] and, for each, the judge's values and the guided similarities."""

    pictures: Tensor
    values: dict[str, Tensor]
    similarities: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        found = {**self.values, "both_p": self.both_p(), **self.similarities}
        return {name: float(value.float().mean()) for name, value in found.items()}

    def both_p(self) -> Tensor:
        """The judge's probability that the subject and the style are right, of each picture."""
        return self.values["subject_p"] * self.values["style_p"]

    def gain(self, over: Result, pairs: int) -> tuple[float, float]:
        """Mean of both_p more than another method's on the same pairs and seeds, and its standard error over pairs."""
        gains = (self.both_p() - over.both_p()).view(pairs, -1).mean(dim=1)
        return float(gains.mean()), float(gains.std()) / pairs**0.5


def guided(model: Any, plan: Any, reports: list[Any]) -> Any:
    """The model, guided if there is a plan."""
    from lora_conductor.host.guiding.attach import guide

    return model if plan is None else guide(model, plan, reports)


def evaluate(
    small: world.SmallWorld,
    judge: Judge,
    score: Callable[[Tensor, Any], dict[str, Tensor]],
    make_model: Callable[[Any, Path, Path], Any],
    make_plan: PlanMaker,
    subjects: Sequence[str],
    styles: Sequence[str],
    seeds: Sequence[int],
) -> Result:
    """Sample every pair, all seeds in one batch, and judge the pictures."""
    made, values, similarities = [], [], []
    for style in styles:
        for subject in subjects:
            model = make_model(small.model, small.lora("subject", subject), small.lora("style", style))
            model = guided(model, make_plan(subject, style), [])
            made.append(small.decode(small.sample(model, subject, style, seeds)))
            values.append(judge.score(made[-1], subject, style))
            similarities.append(score(made[-1], (subject, style)))
    joined = [
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in (values, similarities)
    ]
    return Result(torch.cat(made), *joined)


def similarity_to_references(pictures: Pictures, encoders: Encoders) -> Callable[[Tensor, Any], dict[str, Tensor]]:
    """What guidance raises, of any pictures: S_DINO_content and S_CLIP_style."""
    from lora_conductor.guidance.losses import cosine_similarity

    @torch.no_grad()
    def score(images: Tensor, pair: tuple[str, str]) -> dict[str, Tensor]:
        subject = torch.stack([pictures.picture(pair[0], name) for name in SUBJECT_STYLES])
        style = torch.stack([pictures.picture(name, pair[1]) for name in STYLE_SUBJECTS])
        embed = [encoders.dino.encoder.embed, encoders.clip.encoder.embed]
        return {
            "S_DINO_content": cosine_similarity(embed[0](images), embed[0](subject)),
            "S_CLIP_style": cosine_similarity(embed[1](images), embed[1](style)),
        }

    return score


def costs(
    small: world.SmallWorld, make_model: Any, plans: dict[str, PlanMaker], rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Of sampling one picture: medians over rounds of time and of CPU time / unguided in the round, and MB of peak
    memory more.

    In turn, round after round, so that a noisy machine disturbs all methods alike; CPU time it disturbs less. Memory in
    a round of its own: giving back what is free makes the next run slower.
    """
    pair = world.TEST[0], world.STYLES[0]
    base = make_model(small.model, small.lora("subject", pair[0]), small.lora("style", pair[1]))
    models = {name: guided(base, plan(*pair), []) for name, plan in plans.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for round_ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter(), time.process_time()
            small.sample(model, *pair, [round_])
            if round_:  # the first round warms up
                seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    peaks: dict[str, float] = {}
    for name, model in models.items():
        reset_peak()
        small.sample(model, *pair, [0])
        peaks[name] = peak()

    def ratio(name: str, clock: int) -> float:
        return statistics.median(a[clock] / b[clock] for a, b in zip(seconds[name], seconds["none"], strict=True))

    return {name: (ratio(name, 0), ratio(name, 1), peaks[name] - peaks["none"]) for name in models}


def reset_peak() -> None:
    """Forget this process's peak of resident memory (Linux), after giving back what is free."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float:
    """Peak resident memory since, MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


COLUMNS = (
    "method", "subject", "style", "both", "p(both)", "gain in p(both)", "S_DINO_content", "S_CLIP_style", "time",
    "CPU time", "memory",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def row(label: str, means: dict[str, float], gain: tuple[float, float], cost: tuple[float, float, float] | None) -> str:
    judged = " | ".join(f"{means[name]:.2f}" for name in ("subject_ok", "style_ok", "both"))
    seen = " | ".join(f"{means[name]:.3f}" for name in ("S_DINO_content", "S_CLIP_style"))
    probable = f"{means['both_p']:.3f} | {gain[0]:+.3f} +- {gain[1]:.3f}"
    spent = f"{cost[0]:.2f}x | {cost[1]:.2f}x | {cost[2]:+.0f} MB" if cost else "- | - | -"
    return f"| `{label}` | {judged} | {probable} | {seen} | {spent} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(STANDARD))
    parser.add_argument("--world", type=Path, required=True, help="folder with emoji64.npz and the LoRAs")
    parser.add_argument("--policy", default="recommended", help="how the LoRAs are fused (see methods.py)")
    parser.add_argument("--subjects", default="tune", help="a split (tune, test, fresh), or names with commas")
    parser.add_argument("--styles", help="names with commas; default: the split's, or those of the emoji sets")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each pair")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 leaves it out")
    parser.add_argument("--out", type=Path, help="folder for guidance.png and guidance_table.md")
    arguments = parser.parse_args()
    world.enter_host()
    small, judge, pictures = world.SmallWorld(arguments.world), Judge.load(), load_pictures(arguments.world)
    encoders, make_model = Encoders.load(), parse_method(arguments.policy)
    subjects, styles = world.chosen(arguments.subjects, arguments.styles)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    methods = dict.fromkeys(["none", *arguments.methods]) if arguments.rounds else dict.fromkeys(arguments.methods)
    plans = {text: parse_guidance(text, small, pictures, encoders) for text in methods}
    score = similarity_to_references(pictures, encoders)

    cost: dict[str, tuple[float, float, float]] = {}
    if arguments.rounds:
        cost = costs(small, make_model, plans, arguments.rounds)
    lines, sheet, first = [HEADER], {}, None
    print(f"{len(subjects)} subjects x {len(styles)} styles x {len(seeds)} seeds\n{HEADER}", flush=True)
    for text, plan in plans.items():
        result = evaluate(small, judge, score, make_model, plan, subjects, styles, seeds)
        first = first or result
        gain = result.gain(first, len(subjects) * len(styles))
        lines.append(row(text, result.means(), gain, cost.get(text)))
        # By number, in the table's order: the names are too long for the columns.
        sheet[str(len(sheet) + 1)] = result.pictures[:: len(seeds)]
        print(lines[-1], flush=True)
    sheet["truth"] = torch.stack([pictures.picture(subject, style) for style in styles for subject in subjects])
    if arguments.out is not None:
        world.contact_sheet(sheet, arguments.out / "guidance.png")
        (arguments.out / "guidance_table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
