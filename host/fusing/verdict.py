"""Routing Report's last lines: whether routing worked, and what to turn next, computed from the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...fusion.policies import ScoredPolicy, StaticPolicy
from ...fusion.records import RoutingRecord
from ..core import inputs_of, sources
from .normal import USUAL, usual
from .spec import FusionSpec
from .unrouted import why_nothing

NOTHING = {
    "no_loras": ("there were no LoRAs", "choose a subject and a style LoRA in the loader"),
    "one_role": ("LoRAs of one role only act as with ComfyUI's own loader", "choose one for the other role, too"),
    "apart": ("no layer is touched by both LoRAs: each acts whole", "nothing to turn but the strengths"),
    "merged": ("the policy was merged before sampling", "compare with recommended at the same seed"),
    "undecided": ("no step lay in the routed part of the run", "set start to 0 and end to 1"),
}
CLEAR, LOUD, FEW_STEPS, MOST_CFG = 0.8, 1.25, 8, 1e6


def verdict(record: RoutingRecord, spec: FusionSpec | None, left_out: int, cfg: float | None) -> list[str]:
    """Two lines or three: what happened, and what to turn.

    Args:
        record: of the run.
        spec: of the model that sampled; None if it carries no LoRAs.
        left_out: how many entries of the files could not be applied.
        cfg: scale of the run's classifier-free guidance; None if it is not known.
    """
    share = record.subject_share()
    if spec is None or share is None:
        is_merged = spec is not None and isinstance(spec.policy, StaticPolicy)
        what, how = NOTHING[why_nothing(spec, is_merged=is_merged)]
        return [f"verdict: nothing was routed, since {what}", f"next: {how}"]
    what = f"{len(record.layers)} layers routed, {left_out} entries left out; {_balance(record, spec, share)}"
    return [f"verdict: {what}", *(f"next: {step}" for step in _steps(record, spec, share, cfg))]


def loudness(record: RoutingRecord, spec: FusionSpec) -> float | None:
    """How many times as far as the style the subject's file moved the features, in the geometric mean over layers and
    steps, at equal strengths.

    None where the policy measured something else.
    """
    if not spec.measures_energies:
        return None
    ratios = (record.scores[0].clamp_min(1e-30) / record.scores[1].clamp_min(1e-30)).log() / 2
    pairings = spec.rules.prepared.pairings
    turned = torch.tensor([pairings[name].turned if name in pairings else 0.0 for name in record.layers])
    ratios = ratios - turned[:, None] / 2
    known = ratios[~ratios.isnan()]
    return math.exp(float(known.mean())) if known.numel() else None


def cfg_of(prompt: Mapping[str, Any], node: str | None) -> float | None:
    """The nearest guidance scale among the nodes that a node's latent comes from; None if there is none."""
    found = (inputs_of(prompt, source).get("cfg") for source in sources(prompt, node, "latent"))
    numbers = (cfg for cfg in found if isinstance(cfg, int | float) and abs(cfg) < MOST_CFG)  # as NaN is not
    return next((float(cfg) for cfg in numbers), None)


def _evens_out(spec: FusionSpec) -> bool:
    return bool(getattr(spec.policy, "evenness", 0.0))


def _balance(record: RoutingRecord, spec: FusionSpec, share: float) -> str:
    ratio = loudness(record, spec)
    if ratio is not None and _evens_out(spec):
        if 1 / LOUD < ratio < LOUD:
            return "both files are about equally loud, and both are in every layer"
        louder, times = ("subject", ratio) if ratio > 1 else ("style", 1 / ratio)
        return f"the {louder}'s file is {times:.1f} times as loud, which was evened out; both are in every layer"
    for role, part in (("subject", share), ("style", 1 - share)):
        low, high = USUAL.get(record.title, (1 - CLEAR, CLEAR))
        if part > max(CLEAR, high if role == "subject" else 1 - low):
            return f"the {role} holds nearly everything ({part:.0%})"
    return f"both have their say (subject {share:.0%}{usual(record.title)})"


def _steps(record: RoutingRecord, spec: FusionSpec, share: float, cfg: float | None) -> Iterator[str]:
    lean = spec.refinement.lean
    if isinstance(spec.policy, ScoredPolicy):
        if not _evens_out(spec) and not 1 - CLEAR <= share <= CLEAR:
            towards = lean - 1 if share > CLEAR else lean + 1
            yield f"even_out 1, or balance {towards:g}, or the policy recommended"
        else:
            yield f"if the face is lost, subject_strength up by a quarter, or balance {lean + 1:g}"
            yield f"if the style is weak, style_strength up by a quarter, or balance {lean - 1:g}"
    else:
        yield "to shift it, the loader's strengths, or the policy recommended"
    if cfg is not None and cfg <= 1 and _evens_out(spec) and not spec.refinement.emphasis:
        # No weight goes beyond 1 there unless somebody asks (docs/benchmarks/distilled.md, stress.md).
        yield "if both are faint, emphasis 1.25, then 1.5, or both strengths up so far"
    if cfg is None:
        yield "if it is burnt, emphasis 1, then both strengths down together"
    elif spec.rules.counts(cfg) > 1:
        yield f"if it is burnt, emphasis {spec.rules.cooler(cfg):.3g}, then both strengths down together"
    else:
        yield "if it is burnt, both strengths down together"
    if record.steps < FEW_STEPS:
        yield f"{record.steps} steps are few: if it is mush, see first that the model alone is not"
