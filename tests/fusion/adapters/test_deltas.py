"""Deltas against dense float64 products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.adapters import DeltaError, LowRankDelta, Place, peak
from lora_conductor.fusion.adapters.low_rank import lora
from lora_conductor.fusion.layers import SegmentDeltas


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([(), (1,), (3,), (3, 3), (1, 3, 2)]),
    st.sampled_from([None, 0.0, 1.0, 7.5]),
)
@settings(max_examples=60, deadline=None)
def test_dense_is_scale_times_up_times_down(out, width, rank, kernel, alpha):
    up, down = torch.randn(out, rank, *[1] * len(kernel)), torch.randn(rank, width, *kernel)
    delta = lora(Place((out, width, *kernel)), up, down, None, alpha)
    scale = 1.0 if alpha is None else alpha / rank
    expected = scale * torch.einsum("or,ri...->oi...", up.double().flatten(1), down.double())
    torch.testing.assert_close(delta.dense(), expected)
    folded = SegmentDeltas("l", {"style": delta.down.double()}, {"style": scale * delta.up.double()})
    assert folded.energy("style") == pytest.approx(float(expected.square().sum()), rel=1e-9, abs=1e-12)


def test_flattened_conv_factors_take_the_weights_shape():
    up, down = torch.randn(6, 2), torch.randn(2, 4 * 9)
    assert lora(Place((6, 4, 3, 3)), up, down, None, None).down.shape == (2, 4, 3, 3)


def test_tucker_core_is_folded():
    up, down, mid = torch.randn(6, 3, 1, 1), torch.randn(2, 4, 1, 1), torch.randn(3, 2, 3, 3)
    delta = lora(Place((6, 4, 3, 3)), up, down, mid, 1.0)
    expected = 0.5 * torch.einsum("om,mnhw,ni->oihw", up.flatten(1), mid, down.flatten(1))
    torch.testing.assert_close(delta.dense().float(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("up", "down", "shape", "match"),
    [
        (torch.zeros(4, 2), torch.zeros(3, 5), (4, 5), "does not make a weight"),
        (torch.zeros(4, 2), torch.zeros(2, 6), (4, 5), "does not make a weight"),
        (torch.zeros(5, 2), torch.zeros(2, 5), (4, 5), "does not make a weight"),
        (torch.full((4, 2), torch.nan), torch.zeros(2, 5), (4, 5), "up factor holds NaN"),
        (torch.zeros(4, 2), torch.full((2, 5), torch.inf), (4, 5), "down factor holds NaN"),
        (torch.zeros(4), torch.zeros(2, 5), (4, 5), "two dimensions"),
    ],
)
def test_factors_that_do_not_fit_are_refused(up, down, shape, match):
    with pytest.raises(DeltaError, match=match):
        lora(Place(shape), up, down, None, None)


def test_alpha_that_is_no_number_is_refused():
    with pytest.raises(DeltaError, match="alpha"):
        lora(Place((4, 5)), torch.zeros(4, 2), torch.zeros(2, 5), None, float("nan"))


def test_a_rank_of_nothing_has_no_scale():
    with pytest.raises(DeltaError, match="rank is 0"):
        lora(Place((4, 5)), torch.zeros(4, 0), torch.zeros(0, 5), None, 1.0)
    nothing = lora(Place((4, 5)), torch.zeros(4, 0), torch.zeros(0, 5), None, None)
    assert nothing.rank == 1 and nothing.dense().shape == (4, 5) and not nothing.dense().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_peak_is_the_largest_absolute_value(dtype):
    values = torch.tensor([[0.5, -3.0], [2.0, 0.0]]).to(dtype)
    assert peak(values) == 3 and peak(torch.zeros(2, 2).to(dtype)) == 0 and peak(torch.empty(0, 3).to(dtype)) == 0
    for place in ((0, 0), (1, 1)):
        broken = values.float()
        broken[place] = float("nan")
        assert math.isnan(peak(broken.to(dtype)))


def test_peak_is_that_in_float32():
    assert peak(torch.tensor([1e200, -1.0], dtype=torch.float64)) == float("inf")
    assert peak(torch.tensor([-float("inf"), 1.0])) == float("inf")


@pytest.mark.parametrize(
    "up, down, scale", [(1e38, 1, 10), (1, float("nan"), 1), (1, 1, float("inf")), (float("nan"), 1, 1)]
)
def test_what_is_no_number_in_float32_is_refused(up, down, scale):
    with pytest.raises(DeltaError, match="too large"):
        LowRankDelta(torch.full((2, 3), float(down)), torch.full((4, 2), float(up)), scale).check_size()
    LowRankDelta(torch.ones(2, 3), torch.full((4, 2), 1e38), -3).check_size()
