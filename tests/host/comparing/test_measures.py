"""The axes and intervals of a measured pair against numpy and the t distribution's own integral."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_conductor.host.comparing.measures import LEAST, covered, difference, estimate, t_975


def test_the_way_is_that_of_all_seeds() -> None:
    base, alone, fused = [0.3, 0.45, 0.2], [0.7, 0.6, 0.8], [0.5, 0.7, 0.1]
    way = np.mean(np.array(alone) - np.array(base))
    assert covered(fused, base, alone) == pytest.approx(list((np.array(fused) - np.array(base)) / way))
    assert covered(base, base, alone) == [0.0] * 3
    assert covered(alone, base, alone) == pytest.approx([(b - a) / way for a, b in zip(base, alone, strict=True)])
    assert covered(fused, alone, base) == [None] * 3, "further from the reference than without it"
    assert covered(fused, base, [0.7, 0.4, 0.8]) == [None] * 3, (
        "nearer at two seeds of three: 0.31 with an error of 0.18"
    )
    assert covered([0.5], [0.3], [0.3 + LEAST / 2]) == [None]


@pytest.mark.parametrize("degrees", [1, 2, 5, 10, 11, 15, 30, 63])
def test_the_quantile_holds_ninety_five_percent(degrees: int) -> None:
    t = np.linspace(0, t_975(degrees), 200_001)
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(math.sqrt(degrees * math.pi))
    density = np.exp(log_scale - (degrees + 1) / 2 * np.log1p(t**2 / degrees))
    inside = 2 * float(((density[1:] + density[:-1]) / 2).sum() * (t[1] - t[0]))
    assert inside == pytest.approx(0.95, abs=2e-5)


def test_means_and_intervals() -> None:
    values = [0.1, 0.5, None, 0.6, 0.9]
    known = np.array([0.1, 0.5, 0.6, 0.9])
    found = estimate(values)
    assert found is not None and found.count == 4
    assert found.mean == pytest.approx(known.mean()) and found.half == pytest.approx(
        3.18245 * known.std(ddof=1) / 2, rel=1e-4
    )
    assert str(found) == f"{known.mean():.0%} \u00b1 {100 * found.half:.0f}"
    one = estimate([0.25])
    assert one is not None and (one.mean, one.half, str(one)) == (0.25, None, "25%")
    assert estimate([None, None]) is None


def test_differences_are_of_the_same_seeds() -> None:
    ours, theirs = [0.9, 0.4, None, 0.6], [0.8, 0.3, 0.2, None]
    found = difference(ours, theirs)
    assert found is not None and found.count == 2
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(0.0, abs=1e-12)
