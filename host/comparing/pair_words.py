"""A measured pair in words and numbers: a verdict, what to turn next, and every figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...fusion.roles import ROLES
from ...fusion.routing import acting
from ...guidance.burn import FIGURES
from ..core import printable
from ..fusing import FusionSpec
from .heat import NAMES
from .measures import Estimate, difference, estimate
from .pair import HEATED, MEASURED, MeasuredPair

WEAK, APART, UNSURE = 0.5, 0.2, 0.5  # of the way that a LoRA alone goes; the last is half an interval
BURNT = 1.15  # times what the hotter of the two LoRAs has alone
FEW = 4  # seeds
HEADS = {"base": "no LoRA", "subject": "subject alone", "style": "style alone", "stacked": "stacked", "ours": "ours"}
DRAWN = (
    "what the {role} LoRA draws alone, at the other seeds: that holds the prompt's content and the model's manner too, "
    "so no fused picture can be all of it. Connect {role}_image for a figure that means the {role} itself"
)


def axis_of(pair: MeasuredPair, role: str, kind: str) -> Estimate | None:
    """How far a kind of picture goes a role's way, over the seeds; None if it was not measured."""
    return estimate(pair.axes[role][kind]) if role in pair.axes else None


def burn_of_pair(pair: MeasuredPair, kind: str) -> dict[str, Estimate]:
    """By figure, over the seeds; empty without a whole seed."""
    found = {figure: estimate(pair.burn.get(kind, {}).get(figure, ())) for figure in FIGURES}
    return {figure: value for figure, value in found.items() if value is not None}


def pair_verdict(pair: MeasuredPair, cfg: float) -> list[str]:
    """What happened in a line, and in the next ones what to turn."""
    if not pair.whole:
        return ["verdict: no seed has all five pictures", "next: see the errors in the sheet"]
    ours, stacked = ({role: axis_of(pair, role, kind) for role in ROLES} for kind in ("ours", "stacked"))
    said = [f"{ours[role]} of the {role} (stacked: {stacked[role]})" for role in ROLES if ours[role] is not None]
    figure, worst = _worst(pair)
    burn = f"{NAMES[figure]} {worst:.2f} times what either LoRA alone has"
    likeness = " and ".join(said) if said else "likeness was not measured"
    heat = f"burnt: {burn}" if worst > BURNT else f"not burnt: at most {burn}"
    return [f"verdict: {likeness}; {heat}", *(f"next: {step}" for step in _steps(pair, cfg))]


def _worst(pair: MeasuredPair) -> tuple[str, float]:
    """The figure that is furthest above what the hotter of the two LoRAs has alone, and how many times."""
    ours, subject = (burn_of_pair(pair, kind) for kind in ("ours", "subject"))
    above = {figure: value.mean / max(1.0, subject[figure].mean) for figure, value in ours.items()}
    figure = max(above, key=lambda name: above[name])
    return figure, above[figure]


def _steps(pair: MeasuredPair, cfg: float) -> Iterator[str]:
    for role in ROLES:
        if role in pair.axes and axis_of(pair, role, "ours") is None:
            yield (
                f"the {role} LoRA alone comes no nearer to its reference than the model without it, or not at every "
                f"seed: see its trigger words and {role}_strength, or take another {role}_encoder or {role}_image"
            )
    yield from _of_likeness(pair, cfg)
    if _worst(pair)[1] > BURNT:
        yield _cooler(pair.spec, cfg)
    if len(pair.whole) < FEW:
        yield f"{len(pair.whole)} seeds say little: set seeds to 8"
    yield "vote blind on the node: eyes decide, not cosines"


def _of_likeness(pair: MeasuredPair, cfg: float) -> Iterator[str]:
    found = {role: value for role in ROLES if (value := axis_of(pair, role, "ours")) is not None}
    for role in [role for role, value in found.items() if value.half is not None and value.half > UNSURE]:
        del found[role]
        yield f"the seeds disagree about the {role}: take more of them, or connect your own {role}_image"
    ours = {role: value.mean for role, value in found.items()}
    weak = [role for role, value in ours.items() if value < WEAK]
    leads = {role: difference(pair.axes[role]["ours"], pair.axes[role]["stacked"]) for role in ours}
    if len(ours) == len(ROLES) and all(lead is not None and _is_below(lead) for lead in leads.values()):
        yield "the plain stack goes further on both ways: try the policy sum for this pair"
    elif len(weak) == len(ROLES):
        spec = pair.spec
        more = spec.rules.counts(cfg) + (1 if cfg > 1 else 0.25)
        louder = f"emphasis {more:.3g}, or " if "emphasis" in acting(spec.policy) else ""
        yield f"both are weak: {louder}both strengths up by a quarter"
    for role in weak if len(weak) == 1 else ():
        if len(ours) < len(ROLES) or ours[role] < max(ours.values()) - APART:
            yield f"the {role} is weak: {role}_strength up by a quarter{_balance(pair.spec, role)}"


def _is_below(lead: Estimate) -> bool:
    return lead.half is not None and lead.mean + lead.half < 0


def _balance(spec: FusionSpec, role: str) -> str:
    if "balance" not in acting(spec.policy):
        return ""
    return f", or balance {spec.refinement.lean + (1 if role == ROLES[0] else -1):g}"


def _cooler(spec: FusionSpec, cfg: float) -> str:
    if spec.rules.counts(cfg) > 1:
        return f"to cool it, emphasis {spec.rules.cooler(cfg):.3g}, then both strengths down together"
    return "to cool it, both strengths down together"


def pair_report(pair: MeasuredPair, cfg: float) -> str:
    """All of it, as text with Markdown tables."""
    lines = [*pair_verdict(pair, cfg), ""]
    lines += _axes_table(pair)
    if pair.whole:
        lines += [
            "",
            f"| times the style's alone | {' | '.join(HEADS[kind] for kind in HEATED)} |",
            "|---|---|---|---|",
        ]
        every = [burn_of_pair(pair, kind) for kind in HEATED]
        lines += [f"| {NAMES[figure]} | {' | '.join(_ratio(found[figure]) for found in every)} |" for figure in FIGURES]
    lines.append("")
    for role in pair.axes:
        drawn = "your pictures" if role in pair.given else DRAWN.format(role=role)
        lines.append(f"{role}: compared with {drawn}.")
    lines.append("100% is that LoRA alone, 0% the model without LoRAs; \u00b1 is the 95% interval over the seeds.")
    for (kind, seed), shot in pair.shots.items():
        if shot.error:
            lines.append(f"{kind}, seed {seed}: {shot.error}")
    return printable("\n".join(lines))


def _ratio(value: Estimate) -> str:
    return f"{value.mean:.2f}" if value.half is None else f"{value.mean:.2f} \u00b1 {value.half:.2f}"


def _axes_table(pair: MeasuredPair) -> Iterator[str]:
    if not pair.axes:
        return
    columns = [(role, kind) for role in pair.axes for kind in MEASURED]
    yield f"| seed | {' | '.join(f'{role}, {kind}' for role, kind in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for index, seed in enumerate(pair.whole):
        values = [pair.axes[role][kind][index] for role, kind in columns]
        yield f"| {seed} | {' | '.join('-' if value is None else f'{value:.0%}' for value in values)} |"
    yield f"| mean | {' | '.join(str(axis_of(pair, *column) or '-') for column in columns)} |"
    for role in pair.axes:
        lead = difference(pair.axes[role]["ours"], pair.axes[role]["stacked"])
        if lead is not None:
            yield f"ours minus stacked, {role}: {lead}"


def pair_figures(pair: MeasuredPair) -> dict[str, Any]:
    """Everything as plain data."""

    def plain(value: Estimate | None) -> Any:
        return None if value is None else {"mean": value.mean, "half_interval": value.half, "seeds": value.count}

    return printable(
        {
            "version": 1,
            **pair.spec.header,
            "seeds": list(pair.seeds),
            "measured_seeds": list(pair.whole),
            "similarities": pair.similarities,
            "axes": pair.axes,
            "mean_axes": {role: {kind: plain(axis_of(pair, role, kind)) for kind in MEASURED} for role in pair.axes},
            "burn": pair.burn,
            "mean_burn": {
                kind: {figure: plain(value) for figure, value in burn_of_pair(pair, kind).items()} for kind in HEATED
            },
            "references": {role: "given" if role in pair.given else "drawn" for role in pair.axes},
            "errors": {f"{kind} {seed}": shot.error for (kind, seed), shot in pair.shots.items() if shot.error},
        }
    )
