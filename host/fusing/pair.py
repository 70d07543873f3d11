"""What a pair of LoRAs is like, before anything is sampled: how loud, how alike, where they meet, and what follows."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...fusion.layers import FusedLayer, Meeting, Segment, meetings
from ...fusion.policies import ScoredPolicy, StaticPolicy
from ...fusion.roles import ROLES
from ...fusion.routing import name_of
from ..maps import block_of
from .spec import FusionSpec

WORK = 9e9  # operations: a pair of rank 16 on all layers of SDXL has fewer, some tenths of a second on one core
LOUD, FAR, ALIKE = 1.25, 12.0, 0.3
MOST_BLOCKS = 12


@dataclass(frozen=True)
class Pair:
    """Both roles as they meet on a model. Strengths are left out of the loudness, and cosines have their sign.

    Attributes:
        loudness: norm of the subject's update over that of the style's, in the middle of all segments; None where no
            segment tells.
        cosine: of both updates, over all measured segments as one vector.
        read, written: mean shares of directions in common (:class:`Meeting`).
        by_chance: what these would be by chance.
        closest: the segment of the largest cosine, by its amount, and that.
        measured, shared: in how many segments all this was measured, and how many there are.
    """

    loudness: float | None
    cosine: float
    read: float
    written: float
    by_chance: tuple[float, float]
    closest: tuple[str, float]
    measured: int
    shared: int


def pair_of(spec: FusionSpec, work: float = WORK) -> Pair | None:
    """How both roles meet; None where no segment has low-rank deltas of both.

    Args:
        spec: both roles are on the model.
        work: how many multiplications it may take; of larger pairs every n-th segment is measured.
    """
    shared = [(layer, segment) for layer in spec.layers for segment in layer.segments if segment.shared]
    plain = [(layer, segment) for layer, segment in shared if segment.is_low_rank]
    chosen = plain[:: max(1, math.ceil(sum(_work(*pair) for pair in plain) / work))]
    found = meetings(layer.segment_deltas(segment) for layer, segment in chosen)
    found = [one for one in found if all(energy > 0 for energy in one.energies)]
    if not found:
        return None
    known = [s.pairing.loudness for _, s in shared if s.pairing.loudness is not None]
    subject, style = (sum(one.energies[i] for one in found) for i in (0, 1))
    closest = max(found, key=lambda one: abs(_cosine(one)))
    return Pair(
        math.exp(statistics.median(known) / 2) if known else None,
        sum(one.inner for one in found) / (math.sqrt(subject) * math.sqrt(style)),
        statistics.fmean(one.read for one in found),
        statistics.fmean(one.written for one in found),
        (statistics.fmean(one.by_chance[0] for one in found), statistics.fmean(one.by_chance[1] for one in found)),
        (closest.name, _cosine(closest)),
        len(found),
        len(shared),
    )


def norms_of(spec: FusionSpec) -> dict[str, float]:
    """Norm of what each role adds to all weights, where it is made of nothing but plain LoRAs; strengths count."""
    squares = dict.fromkeys(ROLES, 0.0)
    others = {role for layer in spec.layers for segment in layer.segments for role in segment.bypasses}
    for layer in spec.layers:
        for segment in layer.segments:
            for role, rows in segment.rows.items():  # their columns are orthonormal (fusion/layers/basis.py)
                assert layer.down is not None
                squares[role] += float(layer.down[list(rows)].double().square().sum())
    return {role: math.sqrt(square) for role, square in squares.items() if square and role not in others}


def said_of_pair(spec: FusionSpec) -> Iterator[str]:
    """The report's lines about the pair."""
    yield f"  they meet in (layers): {_blocks(spec.shared)}"
    pair = pair_of(spec)
    if pair is None:
        yield "  what they add there is not low-rank in both: not compared before sampling"
        return
    some = "" if pair.measured == pair.shared else f" (in {pair.measured} of {pair.shared} parts of layers)"
    if pair.loudness is not None:
        yield f"  loudness: {_loudness(pair.loudness)}"
    name, cosine = pair.closest
    yield (f"  cosine of what they add: {_two(pair.cosine)}{some}; furthest from 0 in {_short(name)}: {_two(cosine)}")
    read, written = pair.by_chance
    yield (
        f"  directions in common: {pair.read:.0%} of those they read ({read:.0%} by chance), {pair.written:.0%} of "
        f"those they write ({written:.0%} by chance)"
    )
    yield from (f"  so: {line}" for line in what_follows(spec, pair))


def what_follows(spec: FusionSpec, pair: Pair) -> Iterator[str]:
    """What the figures mean under the policy that is set."""
    policy, name = spec.policy, name_of(spec.policy)
    evens = isinstance(policy, ScoredPolicy) and bool(getattr(policy, "evenness", 0.0))
    ratio = pair.loudness or 1.0
    louder, times = ("subject", ratio) if ratio > 1 else ("style", 1 / ratio)
    if times >= FAR:
        yield f"beside the {louder}'s file the other is hardly there: look whether both are for this model"
    elif times < LOUD:
        yield "equally loud: equal strengths are a fair start"
    elif evens:
        yield f"{name} evens that out: equal strengths are a fair start"
    elif isinstance(policy, StaticPolicy):
        yield f"{name} leaves that: the {louder} leads, unless its strength goes towards {1 / times:.2g}"
    else:
        yield f"{name} may give the {louder} nearly everything: even_out 1, or the policy recommended"
    if pair.cosine > ALIKE:
        yield "much of both is the same change, which counts twice: if the picture burns, both strengths down"
    elif pair.cosine < -ALIKE:
        yield "they undo each other in part: both may look weaker than alone"
    else:
        yield "they are different changes: little is counted twice, little undone"


def _loudness(ratio: float) -> str:
    if 1 / LOUD < ratio < LOUD:
        return f"about equal ({ratio:.2f} to 1, subject to style)"
    louder, times = ("subject", ratio) if ratio > 1 else ("style", 1 / ratio)
    return f"the {louder}'s file is {times:.1f} times as loud, at equal strengths"


def _cosine(one: Meeting) -> float:
    return one.inner / (math.sqrt(one.energies[0]) * math.sqrt(one.energies[1]))


def _work(layer: FusedLayer, segment: Segment) -> float:
    rank = sum(segment.rank(role) for role in ROLES)
    width = math.prod(layer.geometry.weight_shape[1:]) + segment.stop - segment.start
    # Beside the Gram matrices their eigenvectors.
    return width * rank**2 + 200 * rank**3


def _two(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}"  # and no -0.00


def _short(name: str) -> str:
    return name.removeprefix("diffusion_model.")


def _blocks(layers: Sequence[FusedLayer]) -> str:
    """``double_blocks 0-3, 5 (20 layers), final_layer (1)``."""
    numbers: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for layer in layers:
        match = re.fullmatch(r"(.*?)[._]?(\d+)", block_of(layer.name))
        stem = match[1] if match else block_of(layer.name)
        counts[stem] = counts.get(stem, 0) + 1
        numbers.setdefault(stem, set())
        if match:
            numbers[stem].add(int(match[2]))
    said = [f"{stem} {_ranges(sorted(numbers[stem]))} ({counts[stem]})".replace("  ", " ") for stem in counts]
    more = f" and {len(said) - MOST_BLOCKS} more" if len(said) > MOST_BLOCKS else ""
    return ", ".join(said[:MOST_BLOCKS]) + more


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
