"""A fused layer's output against the layer with densely merged weights, and the routing inside it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.adapters import LowRankDelta
from lora_conductor.fusion.layers import layer as layers
from lora_conductor.fusion.layers.layer import FusedLayer, Geometry
from lora_conductor.fusion.policies import RECOMMENDED, Energy, KLSoft, Paper, StepContext, Sum
from lora_conductor.fusion.routing import Refinement, Router, Rules

from ..decided import decisions_of

FIRST_STEP = StepContext(0, 1)


def fuse(layer, x, base, policy, decisions=None, **settings):
    call = Router(Rules(policy, Refinement(**settings))).open_call()
    out = layer.fuse(x, base, call.decide)
    if decisions is not None:
        decisions += decisions_of(call)
    return out


def delta(out, width, rank=3, *, scale=0.7, out_start=0, in_start=0, kernel=(), size=1.0):
    return LowRankDelta(torch.randn(rank, width, *kernel), size * torch.randn(out, rank), scale, out_start, in_start)


def merged(weight, deltas):
    """The weight with every delta added, dense."""
    weight = weight.double().clone()
    for _, strength, d in deltas:
        part = weight[d.out_start : d.out_stop, d.in_start : d.in_start + d.down.shape[1]]
        part += strength * d.dense()
    return weight.float()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_sum_equals_merged_weights_for_any_slices(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    slices = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["subject", "style"]), st.sampled_from([(0, 12), (0, 4), (4, 4), (8, 4), (2, 7)])
            ),
            min_size=1,
            max_size=5,
        )
    )
    deltas = [
        (role, 0.5 + i, delta(length, 6, rank=i + 1, out_start=start))
        for i, (role, (start, length)) in enumerate(slices)
    ]
    layer = FusedLayer("l", Geometry(6, 12), deltas)
    weight, bias, x = torch.randn(12, 6), torch.randn(12), torch.randn(2, 3, 6)
    out = fuse(layer, x, F.linear(x, weight, bias), Sum())
    torch.testing.assert_close(out, F.linear(x, merged(weight, deltas), bias), rtol=1e-4, atol=1e-4)


def test_input_slices():
    deltas = [("subject", 1.0, delta(5, 3, in_start=4)), ("style", 1.0, delta(5, 8))]
    layer = FusedLayer("l", Geometry(8, 5), deltas)
    weight, x = torch.randn(5, 8), torch.randn(2, 8)
    out = fuse(layer, x, F.linear(x, weight), Sum())
    torch.testing.assert_close(out, F.linear(x, merged(weight, deltas)), rtol=1e-4, atol=1e-4)


CONVS = [
    ((3,), (2,), (1,), (1,)),
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (0, 0), (2, 2)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1)),
]


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CONVS)
def test_convolutions(kernel, stride, padding, dilation, mode):
    if mode == "reflect" and len(kernel) == 3:
        pytest.skip("torch has no 5-d reflect padding for this shape")
    n = len(kernel)
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[n - 1](
        4, 6, kernel, stride, padding, dilation, padding_mode=mode
    ).requires_grad_(False)
    deltas = [("subject", 0.8, delta(6, 4, kernel=kernel)), ("style", -0.5, delta(6, 4, 5, kernel=kernel))]
    layer = FusedLayer("c", Geometry(4, 6, kernel, stride, padding, dilation, mode), deltas)
    x = torch.randn(2, 4, *[9] * n)
    out = fuse(layer, x, conv(x), Sum())
    conv.weight.copy_(merged(conv.weight, deltas))
    torch.testing.assert_close(out, conv(x), rtol=1e-4, atol=1e-4)


def two_branches(c_size=1.0, s_size=1.0, seed=0):
    torch.manual_seed(seed)
    deltas = [("subject", 1.0, delta(10, 6, size=c_size)), ("style", 1.0, delta(10, 6, size=s_size))]
    return FusedLayer("l", Geometry(6, 10), deltas), deltas, torch.randn(10, 6)


def test_paper_gives_each_sample_to_its_larger_kl():
    """Eq. 9-13 by hand, in float64, sample by sample; the two samples are made to disagree."""
    layer, deltas, weight = two_branches()
    x = torch.randn(6, 7, 6)
    decisions = []
    out = fuse(layer, x, F.linear(x, weight), Paper(), decisions)
    winners = set()
    for i in range(6):
        base = F.linear(x[i].double(), weight.double())
        adapted = [F.linear(x[i].double(), weight.double() + d.dense()) for _, _, d in deltas]
        kl = [float((a.softmax(-1) * (a.log_softmax(-1) - base.log_softmax(-1))).sum(-1).mean()) for a in adapted]
        winner = 0 if kl[0] >= kl[1] else 1
        winners.add(winner)
        torch.testing.assert_close(out[i].double(), adapted[winner], rtol=1e-4, atol=1e-4)
        assert float(decisions[0].scores["subject"][i]) == pytest.approx(kl[0], rel=1e-3)
        assert float(decisions[0].scores["style"][i]) == pytest.approx(kl[1], rel=1e-3)
    assert winners == {0, 1}, "the example should have both outcomes"


def test_swapping_roles_swaps_decisions():
    layer, deltas, weight = two_branches()
    swapped = FusedLayer("l", layer.geometry, [("style", *deltas[0][1:]), ("subject", *deltas[1][1:])])
    x = torch.randn(5, 7, 6)
    a, b = [], []
    one = fuse(layer, x, F.linear(x, weight), Paper(), a)
    two = fuse(swapped, x, F.linear(x, weight), Paper(), b)
    torch.testing.assert_close(a[0].weights["subject"], b[0].weights["style"])
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("policy", [Sum(), Paper(), KLSoft(), KLSoft(share="both", tokens=0)])
def test_a_batch_is_its_members(policy):
    layer, _, weight = two_branches()
    x = torch.randn(4, 9, 6)
    together = fuse(layer, x, F.linear(x, weight), policy)
    apart = torch.cat([fuse(layer, x[i : i + 1], F.linear(x[i : i + 1], weight), policy) for i in range(4)])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("policy", [Paper(), KLSoft()])
def test_single_sided_layers_take_their_lora_whole(policy):
    d = delta(10, 6)
    layer = FusedLayer("l", Geometry(6, 10), [("style", 0.9, d)])
    weight, x, decisions = torch.randn(10, 6), torch.randn(2, 3, 6), []
    out = fuse(layer, x, F.linear(x, weight), policy, decisions)
    torch.testing.assert_close(out, F.linear(x, merged(weight, [("style", 0.9, d)])), rtol=1e-4, atol=1e-4)
    assert not decisions


def test_fused_slices_are_decided_apart():
    """q from one LoRA's slice and v from another's: each slice its own decision, the slice of one LoRA none."""
    deltas = [
        ("subject", 1.0, delta(12, 6)),
        ("style", 1.0, delta(4, 6, out_start=0)),
        ("style", 1.0, delta(4, 6, out_start=8)),
    ]
    layer = FusedLayer("qkv", Geometry(6, 12), deltas)
    decisions = []
    x = torch.randn(1, 3, 6)
    fuse(layer, x, torch.zeros(1, 3, 12), Paper(), decisions)
    assert [d.layer for d in decisions] == ["qkv[0:4]", "qkv[8:12]"]


def test_several_loras_of_a_role_act_as_their_sum():
    parts = [delta(10, 6), delta(10, 6, rank=2)]
    style = delta(10, 6, rank=4)
    together = LowRankDelta(torch.cat([p.down for p in parts]), torch.cat([p.up * p.scale for p in parts], dim=1), 1.0)
    many = FusedLayer(
        "l", Geometry(6, 10), [("subject", 1.0, parts[0]), ("style", 1.0, style), ("subject", 1.0, parts[1])]
    )
    one = FusedLayer("l", Geometry(6, 10), [("subject", 1.0, together), ("style", 1.0, style)])
    x, weight = torch.randn(2, 5, 6), torch.randn(10, 6)
    for policy in (Sum(), Paper(), KLSoft()):
        a, b = (fuse(layer, x, F.linear(x, weight), policy) for layer in (many, one))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [(2, 3), (3, 1), (1, 4), (6, 6)])
@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        *((policy, {}) for policy in (Sum(), Paper(), KLSoft(), RECOMMENDED, Energy())),
        (RECOMMENDED, {"granularity": "token"}),
        (KLSoft(), {"cap": 1.0, "smoothing": 0.5}),
    ],
    ids=str,
)
def test_rows_of_zeros_change_nothing(policy, settings, ranks, dtype, monkeypatch):
    """Of three segments, in the middle one of which the roles trade ranks; and not many are ever held."""
    torch.manual_seed(4)
    cut = (0, 4), (4, 4), (8, 8)
    subject, style = ranks
    deltas = [
        (role, strength, delta(length, 6, rank, out_start=start))
        for i, (start, length) in enumerate(cut)
        for role, strength, rank in (
            ("subject", 0.9, style if i == 1 else subject),
            ("style", 0.7, (subject, style)[i != 1]),
        )
    ]
    x, base = torch.randn(3, 7, 6, dtype=dtype), torch.randn(3, 7, 16, dtype=dtype)
    found, rows = {}, {}
    for most in (0.0, layers.MOST_PADDED, 2.0):
        monkeypatch.setattr(layers, "MOST_PADDED", most)
        layer = FusedLayer("l", Geometry(6, 16), deltas, dtype)
        decided: list = []
        found[most] = fuse(layer, x, base.clone(), policy, decided, **settings), [d.weights for d in decided]
        rows[most] = layer.down.shape[0]
    assert rows[0.0] == 3 * (subject + style)
    assert rows[2.0] == 6 * max(ranks)
    assert rows[1.5] == (rows[2.0] if max(ranks) <= 3 * min(ranks) else rows[0.0])
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for out, weights in found.values():
        torch.testing.assert_close(out, found[0.0][0], **close)
        for one, other in zip(weights, found[0.0][1], strict=True):
            torch.testing.assert_close(one, other, **close)


@pytest.mark.parametrize(("tau", "balance"), list(itertools.product([0.1, 1.0], [-2.0, 0.0, 1.5])))
def test_kl_soft_is_a_sigmoid_of_the_log_ratio(tau, balance):
    c, s = torch.tensor([0.2, 3.0, 1e-6]), torch.tensor([0.1, 4.0, 0.5])
    w_c, w_s = KLSoft(temperature=tau).weights((c / s).log(), balance, FIRST_STEP)
    # sigmoid((log(c/s) + b) / tau), written as a ratio of powers
    expected = (c.double() * torch.e**balance) ** (1 / tau)
    expected = expected / (expected + s.double() ** (1 / tau))
    torch.testing.assert_close(w_c.double(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(w_c + w_s, torch.ones(3))


def test_kl_soft_becomes_the_papers_choice_as_temperature_falls():
    log_ratio = torch.randn(50)
    hard, soft = (p.weights(log_ratio, 0.3, FIRST_STEP) for p in (Paper(), KLSoft(temperature=1e-4)))
    torch.testing.assert_close(hard[0], soft[0])


def test_gradients_reach_the_input():
    layer, _, weight = two_branches()
    x = torch.randn(2, 3, 6, requires_grad=True)
    fuse(layer, x, F.linear(x, weight), KLSoft()).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("kwargs", [{"temperature": 0}, {"share": "x"}, {"score_name": "x"}])
def test_settings_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs)).split("_")[0]):
        KLSoft(**kwargs)
