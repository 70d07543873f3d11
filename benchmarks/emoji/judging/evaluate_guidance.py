"""What metric guidance does to the pictures, by its own encoders and by a judge it cannot see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..methods.guidance import STYLE_SUBJECTS, Encoders, PlanMaker, guided
from ..world.pictures import Pictures
from ..world.small_world import SmallWorld
from ..world.splits import SUBJECT_STYLES
from .judge import Judge


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


def evaluate(
    small: SmallWorld,
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
