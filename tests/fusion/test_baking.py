"""Fused deltas as low-rank updates, against dense float64 matrices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion import baking
from lora_conductor.fusion.baking import assembled, baked_weights, low_rank, weighted
from lora_conductor.fusion.layers import SegmentDeltas
from lora_conductor.fusion.policies import Composite, Paper, Switch
from lora_conductor.fusion.records import RoutingRecord

KERNELS = [(), (3,), (3, 3), (1, 1), (1, 2, 3)]


def factors(out, inner, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, *inner, generator=generator)


def dense(up, down):
    """``[out, in * kernel]`` float64."""
    return up.double().flatten(1).numpy() @ down.double().flatten(1).numpy()


def error(cut, truth):
    return np.linalg.norm(dense(cut.up, cut.down) - truth) / max(np.linalg.norm(truth), 1e-30)


@given(
    out=st.integers(1, 24),
    width=st.integers(1, 12),
    kernel=st.sampled_from(KERNELS),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 24), max_size=4),
    rank=st.integers(0, 10),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_stacked_segments_are_cut_as_the_dense_matrix(out, width, kernel, ranks, cuts, rank, seed):
    """Segments of any ranks put together; the error is Eckart-Young's, from the dense matrix's singular values."""
    shape = (out, width, *kernel)
    borders = sorted({0, out, *(c for c in cuts if c < out)})
    truth = np.zeros((out, width * int(np.prod(kernel))))
    parts = []
    for i, (start, stop) in enumerate(zip(borders, borders[1:], strict=False)):
        up, down = factors(stop - start, shape[1:], ranks[i % len(ranks)], seed + i)
        truth[start:stop] = dense(up, down)
        parts.append((start, (up, down)))
    cut = low_rank(assembled(parts, shape), rank)
    values = np.linalg.svd(truth, compute_uv=False)
    kept = rank or len(values)
    assert cut.up.shape == (out, cut.rank) and cut.down.shape == (cut.rank, *shape[1:])
    assert cut.rank <= min(kept, out, truth.shape[1], sum(part[1][1].shape[0] for part in parts))
    total = (values**2).sum()
    assert cut.energy == pytest.approx(total, rel=1e-5)
    assert cut.lost == pytest.approx((values[kept:] ** 2).sum(), abs=1e-5 * total)
    assert error(cut, truth) ** 2 == pytest.approx((values[kept:] ** 2).sum() / total, abs=1e-5)


def test_identical_input_directions_are_written_once():
    """A whole qkv LoRA that was cut into three segments keeps its own rank."""
    up, down = factors(30, (20,), 4, 0)
    parts = [(start, (up[start : start + 10], down)) for start in (0, 10, 20)]
    joined = assembled(parts, (30, 20))
    assert joined[1].shape[0] == 12 and low_rank(joined).rank == 4
    assert error(low_rank(joined), dense(up, down)) < 1e-6


def test_dense_parts_among_factors():
    up, down = factors(6, (5, 3, 3), 2, 0)
    block = torch.randn(4, 5, 3, 3)
    truth = np.concatenate([dense(up, down), block.double().flatten(1).numpy()])
    cut = low_rank(assembled([(0, (up, down)), (6, block)], (10, 5, 3, 3)))
    assert cut.rank == 6 and error(cut, truth) < 1e-5


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (40, 10, 3, 3)])
def test_large_dense_deltas(monkeypatch, shape):
    """Beyond the full SVD's reach: all of it exactly, or the leading directions, and the loss that is really there."""
    monkeypatch.setattr(baking, "FULL_SVD_SIDE", 16)
    monkeypatch.setattr(baking, "CUT_SVD_SIDE", 16)
    torch.manual_seed(0)
    decay = torch.tensor([0.7**i for i in range(40)])
    u, v = (torch.linalg.qr(torch.randn(side, 40))[0] for side in (shape[0], math.prod(shape[1:])))
    weight = ((u * decay) @ v.T).reshape(shape)
    truth = weight.double().flatten(1).numpy()
    whole = low_rank(weight)
    assert whole.lost == 0 and whole.rank == 40 and error(whole, truth) < 1e-6
    state = torch.get_rng_state()
    cut, again = low_rank(weight, 5), low_rank(weight, 5)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(cut.up, again.up)
    best = (np.linalg.svd(truth, compute_uv=False)[5:] ** 2).sum()
    assert cut.rank == 5 and cut.lost == pytest.approx(best, rel=1e-3)
    assert (error(cut, truth) ** 2) == pytest.approx(cut.lost / cut.energy, rel=1e-3)


SHAPES = [(2, 2), (3, 2), (6, 6), (10, 45), (30, 7), (5, 90), (48, 48), (16, 200)]
FORMS = {
    "factors": lambda up, down: (up, down),
    "double factors": lambda up, down: (up.double(), down.double()),
    "factors twice": lambda up, down: (torch.cat([up, 0.3 * up], 1), torch.cat([down, down])),
    "rounded twice": lambda up, down: (torch.cat([up, up], 1), torch.cat([0.37 * down, down / 3])),
    "identity before": lambda up, down: (torch.eye(up.shape[0]), up @ down),
    "identity after": lambda up, down: (up @ down, torch.eye(down.shape[1])),
    "dense": lambda up, down: up @ down,
    "dense, rounded once": lambda up, down: (up.double() @ down.double()).float(),
    "double dense": lambda up, down: up.double() @ down.double(),
}


@pytest.mark.parametrize("form", FORMS)
def test_rank_is_found_whatever_the_draw(form):
    """A thousand draws of every scale: no direction is made of rounding, and none is taken for it."""
    for seed in range(1000):
        out, width = SHAPES[seed % len(SHAPES)]
        generator = np.random.default_rng(seed)
        rank, scale = int(generator.integers(1, min(out, width) + 1)), 10 ** generator.uniform(-6, 6)
        up, down = factors(out, (width,), rank, seed)
        delta = FORMS[form](scale * up, down)
        truth = dense(*delta) if isinstance(delta, tuple) else delta.double().numpy()
        values = np.linalg.svd(truth, compute_uv=False) ** 2
        total = values.sum()
        whole, cut = low_rank(delta), low_rank(delta, (rank + 1) // 2)
        assert (whole.rank, cut.rank) == (rank, (rank + 1) // 2), f"draw {seed}"
        for found in (whole, cut):
            assert found.energy == pytest.approx(total, rel=1e-5)
            assert found.lost == pytest.approx(values[found.rank :].sum(), rel=1e-3, abs=1e-10 * total)
            assert error(found, truth) ** 2 == pytest.approx(values[found.rank :].sum() / total, rel=1e-3, abs=1e-10)


@pytest.mark.parametrize("form", ["factors", "rounded twice", "dense"])
def test_weak_directions_of_large_layers_are_kept(form):
    """A LoRA of a ten-thousandth of another's strength, where ``max(shape) eps`` would leave it out."""
    up, down = factors(1500, (600,), 8, 0)
    delta = FORMS[form](up * torch.tensor([1.0] * 4 + [1e-4] * 4), down)
    values = np.linalg.svd(dense(*delta) if isinstance(delta, tuple) else delta.numpy(), compute_uv=False)
    assert values[7] < 1500 * np.finfo(np.float32).eps * values[0]
    assert low_rank(delta).rank == 8


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (300, 280)])
def test_leading_directions_are_no_noise(monkeypatch, shape):
    """Cut to more than there is, within a subspace."""
    monkeypatch.setattr(baking, "CUT_SVD_SIDE", 16)
    for seed in range(100 if shape[0] < 100 else 10):
        up, down = factors(shape[0], shape[1:], 3, seed)
        assert low_rank(up @ down, 12).rank == 3


def test_nothing_has_no_rank():
    assert low_rank(torch.zeros(4, 5)).rank == 0
    assert low_rank((torch.zeros(4, 2), torch.zeros(2, 5))).rank == 0
    deltas = SegmentDeltas("x", {"style": torch.randn(2, 5)}, {"style": torch.randn(4, 2)})
    assert low_rank(assembled([(0, weighted(deltas, {"style": 0.0}))], (4, 5))).rank == 0


def test_weighted_branches():
    pairs = {role: factors(8, (6,), rank, seed) for role, rank, seed in (("subject", 2, 0), ("style", 3, 1))}
    deltas = SegmentDeltas("x", {r: p[1] for r, p in pairs.items()}, {r: p[0] for r, p in pairs.items()})
    truth = 0.3 * dense(*pairs["subject"]) - 1.7 * dense(*pairs["style"])
    up, down = weighted(deltas, {"subject": 0.3, "style": -1.7})
    assert np.allclose(dense(up, down), truth, atol=1e-5) and down.shape[0] == 5
    assert weighted(deltas, {"subject": 0.0, "style": 1.0})[1].shape[0] == 3


def record_of(weights, layers):
    return RoutingRecord({}, (), {}, (), layers, torch.full_like(weights, torch.nan), weights)


def test_weights_of_a_step_and_their_mean():
    nan = torch.nan
    weights = torch.tensor([[[0.2, 0.4, nan], [1.0, nan, nan]], [[0.8, 0.2, nan], [0.5, nan, nan]]]).double()
    record = record_of(weights, ("a", "b"))
    mean = baked_weights(Paper(), record, None)
    assert mean.shared["a"] == pytest.approx({"subject": 0.3, "style": 0.5})
    assert mean.shared["b"] == pytest.approx({"subject": 1.0, "style": 0.5})
    assert mean.alone == {"subject": 1.0, "style": 1.0}
    second = baked_weights(Paper(), record, 1)
    assert second.shared == {"a": pytest.approx({"subject": 0.4, "style": 0.2})}, "b did not run in that step"
    with pytest.raises(ValueError, match="nothing was decided in step 3"):
        baked_weights(Paper(), record, 2)
    for step in (-1, 3):
        with pytest.raises(ValueError, match="has 3 steps"):
            baked_weights(Paper(), record, step)


def test_passes_turn_off_the_resting_loras_own_layers():
    record = record_of(torch.zeros(2, 0, 6).double(), ())
    assert baked_weights(Switch(2), record, 0).alone == {"subject": 1.0, "style": 0.0}
    assert baked_weights(Switch(2), record, 2).alone == {"subject": 0.0, "style": 1.0}
    assert baked_weights(Switch(2), record, None).alone == pytest.approx({"subject": 2 / 3, "style": 1 / 3})
    assert baked_weights(Composite(), record, 3).alone == {"subject": 0.5, "style": 0.5}
