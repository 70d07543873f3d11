"""Ways of putting a subject LoRA and a style LoRA on the small world's model, read from one line of text.

core:A/B            both LoRAs merged by core's stacked loaders at strengths A (subject) and B (style)
POLICY              a routing policy of this pack at strengths 1/1, with settings of its own and of the router:
                    kl_soft(temperature=1,share=both,smoothing=.7), recommended(floor=.3)
A/B:POLICY          the same at other strengths
rank A/B:METHOD     any of these with the files cut down to rank A (subject) and B (style), see lora_ranks.py
loud A/B:METHOD     the same with files that are A and B times as loud, see lora_loudness.py
alpha A/B:METHOD    the same with layers up to A and B times as loud or faint, by chance, see lora_alphas.py
layers A/B:METHOD   the same with files of "all" layers or of "attention" only, see lora_layers.py
shared A/B:METHOD   the same with files that hold A and B times a third one, another subject's, see lora_overlap.py
below A:METHOD      the same with that third file at strength A below both, put there by core's loader
apg ETA/NORM:METHOD the same under core's adaptive projected guidance, see cures.py
base S/U:METHOD     the same guided, at scale S, by the model without LoRAs in the first share U of the schedule; there
by_files            `recommended` by the files' norms, nothing measured, with the router's settings; see deciding.py
levelled            the same, and one number for all layers that is measured; see there
k_lora_on_attention K-LoRA in attention, both LoRAs elsewhere; with K-LoRA's settings
evened_once         `recommended` with one number for all layers: evened_once(layers=A,lean=B,measured=True), see there
FILE.py:NAME        a policy object, or a function (base model, subject LoRA path, style LoRA path) -> model
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..world.small_world import SmallWorld
from .cures import Maker, with_apg, with_base
from .deciding import by_files, evened_once, levelled
from .k_lora_attention import k_lora_on_attention
from .lora_alphas import uneven
from .lora_layers import attention_only
from .lora_loudness import louder
from .lora_overlap import neighbour, overlapping
from .lora_ranks import cut
from .trial_scores import TRIALS, trial

CHANGES: dict[str, Callable[[Path, str], Path]] = {
    "rank": lambda path, rank: cut(path, int(rank)),
    "loud": lambda path, times: louder(path, float(times)),
    "alpha": lambda path, most: uneven(path, float(most)),
    "layers": lambda path, which: {"all": path, "attention": attention_only(path)}[which],
}
"""(file, value) -> the file as it is used."""
DECIDING: dict[str, Callable[..., Any]] = {each.__name__: each for each in (evened_once, levelled)}
"""Makers with settings of their own."""


def core_stacked(subject_strength: float, style_strength: float) -> Maker:
    """Core's two LoRA loaders in a row."""

    def make(model: Any, subject: Path, style: Path) -> Any:
        import comfy.sd
        import comfy.utils

        for path, strength in ((subject, subject_strength), (style, style_strength)):
            if strength:
                weights = comfy.utils.load_torch_file(str(path), safe_load=True)
                model, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0)
        return model

    return make


def routed(policy: Any, subject_strength: float = 1.0, style_strength: float = 1.0, refinement: Any = None) -> Maker:
    """This pack's loader and router with a policy object of ``lora_conductor.fusion.policies``, and its settings."""

    def make(model: Any, subject: Path, style: Path) -> Any:
        from lora_conductor.host.fusing import fused

        return fused(model, (subject, subject_strength), (style, style_strength), policy, refinement)

    return make


def with_files(what: str, for_subject: str, for_style: str, make: Maker) -> Maker:
    """A method whose files are changed beforehand: ``what`` is one of CHANGES, its values are texts."""
    change = CHANGES[what]
    return lambda model, subject, style: make(model, change(subject, for_subject), change(style, for_style))


def with_shared(in_subject: float, in_style: float, make: Maker) -> Maker:
    """A method whose files hold so much of a third one."""

    def made(model: Any, subject: Path, style: Path) -> Any:
        third = neighbour(subject)
        return make(model, overlapping(subject, third, in_subject), overlapping(style, third, in_style))

    return made


def with_another_below(strength: float, make: Maker) -> Maker:
    """A method on a model that core's loader has put a third LoRA on."""

    def made(model: Any, subject: Path, style: Path) -> Any:
        return make(core_stacked(strength, 0.0)(model, neighbour(subject), style), subject, style)

    return made


def parse_policy(text: str) -> tuple[Any, Any]:
    """A policy and the router's settings from one text, e.g. ``kl_soft(temperature=0.5, smoothing=.7)``."""
    from lora_conductor.fusion.policies import POLICIES, RECOMMENDED
    from lora_conductor.fusion.routing import Refinement

    ours = {"recommended": lambda: RECOMMENDED, "by_files": by_files(), "k_lora_on_attention": k_lora_on_attention()}
    known = {**ours, **POLICIES}
    name, settings = _call(text)
    if name not in known:
        raise ValueError(f"unknown policy {text!r}; known: {', '.join(known)}")
    refined = {name: settings.pop(name) for name in list(settings) if name in Refinement.__dataclass_fields__}
    policy = known[name](**settings)
    return policy, trial(refined) if refined.get("score") in TRIALS else Refinement(**refined)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """A name, and what stands in brackets behind it."""
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", text.strip())
    settings: dict[str, Any] = {}
    for item in filter(None, (found[2] or "").split(",") if found else ()):
        key, _, value = item.partition("=")
        try:
            settings[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):  # a bare word
            settings[key.strip()] = value.strip()
    return found[1] if found else text, settings


def parse_method(text: str) -> Maker:
    """A method as written on the command line (see the module's docstring)."""
    if found := re.fullmatch(r"(\S+\.py):(\w+)", text):
        spec = importlib.util.spec_from_file_location("plugged_in", found[1])
        module = importlib.util.module_from_spec(spec)
        sys.modules["plugged_in"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        value = getattr(module, found[2])
        return routed(value) if hasattr(value, "weights") else value
    number = r"[\d.]+"
    if found := re.fullmatch(rf"({'|'.join(CHANGES)}) ([\w.]+)/([\w.]+):(.+)", text):
        return with_files(found[1], found[2], found[3], parse_method(found[4]))
    if found := re.fullmatch(rf"shared ({number})/({number}):(.+)", text):
        return with_shared(float(found[1]), float(found[2]), parse_method(found[3]))
    if found := re.fullmatch(rf"below ({number}):(.+)", text):
        return with_another_below(float(found[1]), parse_method(found[2]))
    if found := re.fullmatch(rf"(apg|base) ({number})/({number}):(.+)", text):
        with_cure = {"apg": with_apg, "base": with_base}[found[1]]
        return with_cure(float(found[2]), float(found[3]), parse_method(found[4]))
    name, settings = _call(text)
    if name in DECIDING:
        return partial(DECIDING[name], **settings)
    if found := re.fullmatch(rf"core:({number})/({number})", text):
        return core_stacked(float(found[1]), float(found[2]))
    if found := re.fullmatch(rf"({number})/({number}):(.+)", text):
        policy, refinement = parse_policy(found[3])
        return routed(policy, float(found[1]), float(found[2]), refinement)
    policy, refinement = parse_policy(text)
    return routed(policy, refinement=refinement)


def ssr_merged(small: SmallWorld, subject: str, style: str) -> Any:
    """SSR-Merge, which has to be calibrated on a prompt for each LoRA alone, at strengths 1/1."""
    import torch

    from lora_conductor.host.fusing import set_policy
    from lora_conductor.host.fusing.calibration import calibrated

    model = routed(parse_policy("sum")[0])(small.model, small.lora("subject", subject), small.lora("style", style))
    prompts = {"subject": small.prompt(subject, None), "style": small.style_prompt(style)}
    return set_policy(model, calibrated(model, prompts, torch.zeros(1, 16, 8, 8)))
