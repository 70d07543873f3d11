"""Metric guidance in the small world, read from one line of text.

A method is `none`, `x0` or `paper`, with settings in brackets: those of GuidanceWindow (start, end, every), of
GuidanceOptions (inner_steps, crops, anchor, adam, max_displacement, time_travel, paper_step, ...), and strength,
subject, style of the sampler node. References are pictures that users have: the two drawings the subject LoRA was
trained on, and three other subjects in the style.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from repo_paths import ASSETS

from ...guidance_defaults import guidance_defaults
from ..world import files
from ..world.pictures import Pictures
from ..world.small_world import SmallWorld
from ..world.splits import SUBJECT_STYLES

ENCODER_FILES = {name: ASSETS / "clip_vision" / files.encoder(name) for name in ("clip", "dino")}
STYLE_SUBJECTS = ("koala", "cactus", "bell-with-slash")


@dataclass(frozen=True)
class Encoders:
    """The small world's guidance encoders."""

    clip: Any
    dino: Any

    @classmethod
    def load(cls) -> Encoders:
        from lora_conductor.host.vision import load_metric_encoder

        return cls(**{name: load_metric_encoder(str(path)) for name, path in ENCODER_FILES.items()})


PlanMaker = Callable[[str, str], Any]
"""(subject, style) -> GuidancePlan, or None for no guidance."""


def parse_guidance(text: str, small: SmallWorld, pictures: Pictures, encoders: Encoders) -> PlanMaker:
    """A method as written on the command line (see the module's docstring)."""
    from lora_conductor.guidance.schedules import GuidanceWindow
    from lora_conductor.host.guiding import GuidanceOptions, GuidancePlan

    found = re.fullmatch(r"(none|x0|paper)(?:\((.*)\))?", text.strip())
    if not found:
        raise ValueError(f"unknown method {text!r}; methods are none, x0(...), paper(...)")
    call = ast.parse(f"f({found[2] or ''})", mode="eval").body
    assert isinstance(call, ast.Call)
    given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    settings = {"mode": found[1], **guidance_defaults(), **given}
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


def guided(model: Any, plan: Any, reports: list[Any]) -> Any:
    """The model, guided if there is a plan."""
    from lora_conductor.host.guiding import guide

    return model if plan is None else guide(model, plan, reports)
