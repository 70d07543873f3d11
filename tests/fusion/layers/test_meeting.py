"""How two deltas meet, by Gram matrices, against singular vectors of the dense updates in float64."""

from __future__ import annotations

import pytest
import torch

from lora_conductor.fusion.layers import SegmentDeltas, meetings
from lora_conductor.fusion.layers.meeting import FAINTEST


def pair(out, width, ranks, *, kernel=(), alike=0):
    """Random deltas of both roles; the first directions are the same in both."""
    down = {role: torch.randn(rank, width, *kernel) for role, rank in zip(("subject", "style"), ranks, strict=True)}
    up = {role: torch.randn(out, rank) for role, rank in zip(("subject", "style"), ranks, strict=True)}
    down["style"][:alike], up["style"][:, :alike] = down["subject"][:alike], up["subject"][:, :alike]
    return SegmentDeltas("layer", down, up)


def naive(segment):
    dense, written, read = [], [], []
    for role in ("subject", "style"):
        whole = segment.up[role].double() @ segment.down[role].double().flatten(1)
        left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
        count = int((sizes > FAINTEST * sizes[0]).sum())
        dense.append(whole)
        written.append(left[:, :count])
        read.append(right[:count].T)
    least, most = sorted(basis.shape[1] for basis in read)
    chances = tuple(min(1.0, most / len(basis)) for basis in (read[0], written[0]))
    shared = [float((a.T @ b).square().sum()) / least for a, b in (read, written)]
    return (
        *(float(whole.square().sum()) for whole in dense),
        float((dense[0] * dense[1]).sum()),
        *shared,
        *chances,
    )


def measured(one):
    return (*one.energies, one.inner, one.read, one.written, *one.by_chance)


CASES = {
    "plain": pair,
    "alike": lambda *a, **k: pair(*a, alike=2, **k),
    "convolution": lambda out, width, ranks: pair(out, width, ranks, kernel=(3, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_is_what_the_dense_updates_say(case):
    segments = [
        CASES[case](*shape) for shape in ((24, 40, (4, 4)), (40, 24, (6, 3)), (16, 16, (4, 4)), (8, 12, (5, 9)))
    ]
    for segment, one in zip(segments, meetings(segments), strict=True):
        expected = naive(segment)
        size = (expected[0] * expected[1]) ** 0.5  # of which the inner product is a part
        assert measured(one)[:2] == pytest.approx(expected[:2], rel=1e-5)
        assert one.inner == pytest.approx(expected[2], abs=1e-6 * size)
        assert measured(one)[3:] == pytest.approx(expected[3:], rel=1e-4)


def test_directions_that_are_none_do_not_count():
    segment = pair(20, 30, (4, 6))
    segment.down["subject"][3] = segment.down["subject"][2]  # of four rows three directions
    segment.up["style"][:, 5] = 0  # no direction
    segment.up["style"][:, 4] *= 1e-5  # too faint to be one
    (one,) = meetings([segment])
    assert measured(one) == pytest.approx(naive(segment), rel=1e-4)
    assert one.by_chance == (pytest.approx(4 / 30), pytest.approx(4 / 20))


def test_the_same_file_twice_shares_everything():
    segment = pair(20, 30, (4, 4), alike=4)
    (one,) = meetings([segment])
    assert one.inner == pytest.approx(one.energies[0], rel=1e-6)
    assert (one.read, one.written) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_a_delta_of_nothing_is_no_error():
    segment = pair(6, 8, (2, 2))
    segment.up["style"].zero_()
    (one,) = meetings([segment])
    assert one.energies[1] == 0 and one.inner == 0 and one.read == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_strengths_beyond_all_use_are_only_strengths(scale):
    segment = pair(20, 30, (4, 6))
    (one,) = meetings([segment])
    segment.up["subject"] *= scale
    (other,) = meetings([segment])
    assert other.energies == (pytest.approx(one.energies[0] * scale**2), pytest.approx(one.energies[1]))
    assert other.inner == pytest.approx(one.inner * scale)
    assert (other.read, other.written) == (pytest.approx(one.read), pytest.approx(one.written))


def test_what_is_no_number_is_nothing():
    segment = pair(20, 30, (4, 6))
    segment.up["subject"][0, 0] = torch.inf
    (one,) = meetings([segment])
    assert one.energies[0] == one.inner == one.read == one.written == 0 and one.energies[1] > 0
