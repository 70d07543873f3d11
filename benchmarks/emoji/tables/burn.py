"""How hard and colourful fused pictures are, and what a judge says that nobody here trained: sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..judging.outsider import Outsider, Seen
from ..judging.verdicts import Array, between, harmonic, replicates
from ..methods.runs import Entry, Pair, Runs

STYLE_ALONE = Entry("the style alone", "core:0/1", kind="anchor")
TRUTH = "the true pictures through the autoencoder"
BURN = """\
## How hard and colourful

Times the same figure of the true picture (after the autoencoder, which all of them have been through), and of the
picture that the style alone makes of the same seed and prompt; geometric means over pairs (`guidance/burn.py`). 1 is as
it should be.
*Gradient* is the energy of the luma's gradient (hard edges), *chroma* the mean in CIE Lab, *contrast* RMS, *clipped*
the share of pixels with a channel that is full or empty, *colourful* Hasler and Suesstrunk's figure."""
SECOND = """\
## A second judge

An EfficientNet-Lite0 of ImageNet with the weights of its authors (`benchmarks/emoji/judging/outsider.py`), which nobody
here trained. The subject is right where, of the true pictures of all 24 held-out subjects in that style, the wanted one
is nearest; the style, where of all true pictures of that subject, in any style, it is the one in the wanted style.
*Harmonic mean* of both rates, with its 95 % interval over pairs, and how far `recommended` is above it. *Features*:
mean cosine distance to the true picture; *colour*: mean CIE76 difference to it."""


@dataclass(frozen=True)
class Burnt:
    """A method's figures: each burn figure over the truth's and over the style alone's, and what the outsider saw."""

    to_truth: Mapping[str, float]
    to_style: Mapping[str, float]
    seen: Seen


def burnt(
    runs: Runs,
    entry: Entry,
    truth: Mapping[Pair, Tensor],
    outsider: Outsider,
    pairs: Sequence[Pair],
    seeds: Sequence[int],
) -> Burnt:
    """Of pictures that have been sampled. truth: [1, 3, 64, 64] by pair."""
    made = [runs.pictures(entry, pair, seeds) for pair in pairs]
    alone = [runs.pictures(STYLE_ALONE, pair, seeds) for pair in pairs]
    return of_pictures(made, alone, truth, outsider, pairs)


def of_pictures(
    made: Sequence[Tensor],
    alone: Sequence[Tensor],
    truth: Mapping[Pair, Tensor],
    outsider: Outsider,
    pairs: Sequence[Pair],
) -> Burnt:
    """made, alone: [seeds, 3, 64, 64], one batch a pair."""
    from lora_conductor.guidance.burn import burn_against

    def mean(anchors: Sequence[Tensor]) -> dict[str, float]:
        parts = [burn_against(batch, anchor) for batch, anchor in zip(made, anchors, strict=True)]
        # Of ratios the middle is at their logarithms.
        return {name: float(torch.cat([part[name].log() for part in parts]).mean().exp()) for name in parts[0]}

    return Burnt(mean([truth[pair] for pair in pairs]), mean(alone), outsider.see_all(made, pairs))


def sections(found: Mapping[str, Burnt], ours: str) -> list[str]:
    """Markdown: both tables. ours: the label of the row whose lead is told."""
    names = list(found[ours].to_truth)
    titles = {"colourfulness": "colourful"}
    heads = [f"{titles.get(name, name)}, {what}" for name in names for what in ("truth", "style alone")]
    first = [f"| method | {' | '.join(heads)} |", f"|{' --- |' * (len(heads) + 1)}"]
    for label, one in found.items():
        cells = [f"{side[name]:.2f}" for name in names for side in (one.to_truth, one.to_style)]
        first.append(f"| {label} | {' | '.join(cells)} |")
    second = ["| method | subject | style | both | harmonic mean | lead | features | colour |", f"|{' --- |' * 8}"]
    second += [_second(label, one.seen, None if label == ours else found[ours].seen) for label, one in found.items()]
    return [BURN, "\n".join(first), SECOND, "\n".join(second)]


def _second(label: str, seen: Seen, ours: Seen | None) -> str:
    drawn, lead = _drawn(seen), ""
    rates = [float(part.double().mean()) for part in (seen.subject, seen.style, seen.subject & seen.style)]
    if ours is not None:
        away = between(_drawn(ours) - drawn)
        lead = f"{_mean(ours) - _mean(seen):+.2f} ({away[0]:+.2f} to {away[1]:+.2f})"
    low, high = between(drawn)
    cells = [*(f"{rate:.2f}" for rate in rates), f"{_mean(seen):.2f} ({low:.2f}-{high:.2f})", lead]
    cells += [f"{max(0.0, float(seen.distance.mean())):.3f}", f"{float(seen.colour.mean()):.1f}"]
    return f"| {label} | {' | '.join(cells)} |"


def _rates(seen: Seen) -> tuple[Array, Array]:
    return seen.subject.double().numpy(), seen.style.double().numpy()


def _drawn(seen: Seen) -> Array:
    return replicates(*_rates(seen))


def _mean(seen: Seen) -> float:
    subject, style = _rates(seen)
    return float(harmonic(subject.mean()[None], style.mean()[None])[0])
