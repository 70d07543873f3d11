"""What is counted of a pair: how far a picture went the way that a LoRA alone goes, and what seeds say on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What a LoRA alone has to bring pictures nearer to its reference, as a cosine, and as a multiple of the standard error
# over the seeds: less is the encoder's noise, and the seeds'.
LEAST, CLEAR = 0.02, 2.0
# 97.5 % quantiles of Student's t by degrees of freedom, from 1 on.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
Z_975 = 1.959964


def covered(fused: Sequence[float], base: Sequence[float], alone: Sequence[float]) -> list[float | None]:
    """``(fused - base) / (alone - base)`` by seed: 0 is the model without LoRAs, 1 is that LoRA alone.

    The way from the one to the other is the mean over the seeds: a seed whose model alone happens to come near to the
    reference has next to none of its own.

    Args:
        fused, base, alone: by seed, similarities of the three pictures to the reference.

    Returns:
        None for every seed where the LoRA alone does not come nearer to the reference by :data:`LEAST`, or not by
        :data:`CLEAR` standard errors: there is no way to go.
    """
    ways = [there - start for there, start in zip(alone, base, strict=True)]
    way, count = math.fsum(ways) / len(ways), len(ways)
    error = math.sqrt(math.fsum((one - way) ** 2 for one in ways) / (count - 1) / count) if count > 1 else 0.0
    is_one = way >= max(LEAST, CLEAR * error)
    return [(here - start) / way if is_one else None for here, start in zip(fused, base, strict=True)]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval (Student's t).

    Attributes:
        mean: of the values.
        half: half the width of the interval; None for a single value.
        count: of the values.
    """

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.0%}" if self.half is None else f"{self.mean:.0%} \u00b1 {100 * self.half:.0f}"


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Of the values that are known; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, count = math.fsum(known) / len(known), len(known)
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in known) / (count - 1)
    return Estimate(mean, t_975(count - 1) * math.sqrt(variance / count), count)


def difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Estimate | None:
    """Of pairs, seed by seed: the scatter that a seed gives both alike falls out."""
    pairs = zip(ours, theirs, strict=True)
    return estimate(None if one is None or other is None else one - other for one, other in pairs)


def t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; beyond the table by Cornish and Fisher, to the fourth digit."""
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = Z_975
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms))
