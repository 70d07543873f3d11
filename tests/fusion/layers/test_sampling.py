"""Which tokens are looked at."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_conductor.fusion.layers.tokens import spread, take


@given(tokens=st.integers(1, 20_000), most=st.integers(0, 512))
def test_one_token_of_each_run(tokens, most):
    chosen = spread(tokens, most)
    if not most or tokens <= most:
        assert chosen == list(range(tokens))
    else:
        assert len(chosen) == most
        assert all(i * tokens // most <= token < (i + 1) * tokens // most for i, token in enumerate(chosen))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 32), (96, 64), (60, 80), (128, 128), (88, 40), (45, 80)])
@pytest.mark.parametrize("most", [64, 256])
def test_no_part_of_the_picture_is_left_out(height, width, most, record_property):
    chosen = torch.tensor(spread(height * width, most))
    rows, columns = chosen // width * 3 // height, chosen % width * 3 // width
    share = torch.bincount(rows * 3 + columns, minlength=9) / most
    record_property("smallest and largest share of a ninth", f"{share.min() * 9:.2f} {share.max() * 9:.2f}")
    assert share.min() > 0.4 / 9 and share.max() < 1.8 / 9


def test_a_sample_taken_under_inference_mode_serves_calls_that_are_differentiated():
    with torch.inference_mode():
        first = take(torch.arange(600.0).reshape(2, 100, 3), 7)
    x = torch.arange(600.0).reshape(2, 100, 3).requires_grad_()
    again = take(x, 7)
    again.sum().backward()
    assert torch.equal(first, again.detach()) and x.grad.sum() == 2 * 7 * 3
    assert take(x, 0) is x and take(x, 100) is x
