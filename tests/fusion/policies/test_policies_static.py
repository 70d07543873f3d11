"""Static merges against dense float64 references written from the published formulas."""

import numpy as np
import pytest
import torch

from lora_conductor.fusion.layers import SegmentDeltas
from lora_conductor.fusion.policies import DARE, DELLA, SVD, TIES, TSV, Average, KnOTS, MagnitudePrune, NPLoRA, Sum
from lora_conductor.fusion.policies.static.entries import uniform
from lora_conductor.fusion.roles import ROLES

from ..dense_policies import dropped, elected_mean, keep_probability, knots, np_lora, trimmed, truncated, tsv

KERNELS = pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "conv"])


def segment(kernel=(), seed=0, out=20, width=16, ranks=(4, 6)):
    generator = torch.Generator().manual_seed(seed)
    down = {role: torch.randn(r, width, *kernel, generator=generator) for role, r in zip(ROLES, ranks, strict=True)}
    up = {role: torch.randn(out, r, generator=generator) for role, r in zip(ROLES, ranks, strict=True)}
    return SegmentDeltas("layer", down, up)


def dense(s, role):
    """dW of a role, [out, in * kernel], float64."""
    return s.up[role].double().numpy() @ s.down[role].double().flatten(1).numpy()


def merge(policy, s):
    """A policy's merge as [out, in * kernel]."""
    merged = policy.merge(s)
    if isinstance(merged, tuple):
        up, down = merged
        assert down.shape[1:] == s.down["style"].shape[1:]
        return up.double().numpy() @ down.double().flatten(1).numpy()
    assert merged.shape == s.dense("style").shape
    return merged.double().flatten(1).numpy()


def check(record_property, policy, s, expected):
    error = np.abs(merge(policy, s) - expected).max() / np.abs(expected).max()
    record_property("max error", error)
    print(f"{policy.name}: {error:.1e}")
    assert error < 1e-5


@KERNELS
def test_sum_and_average(record_property, kernel):
    s = segment(kernel)
    total = dense(s, "subject") + dense(s, "style")
    check(record_property, Sum(), s, total)
    check(record_property, Average(), s, total / 2)


@KERNELS
@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_np_lora_solves_its_least_squares_problem(record_property, kernel, mu):
    s = segment(kernel)
    check(record_property, NPLoRA(mu), s, np_lora(dense(s, "subject"), dense(s, "style"), mu))


def test_np_lora_without_full_rank(record_property):
    """Repeated rows of A and empty columns of B are no part of the style's subspace."""
    s = segment()
    s.down["style"][1] = 2 * s.down["style"][0]
    s.up["style"][:, 3:] = 0
    check(record_property, NPLoRA(0.5), s, np_lora(dense(s, "subject"), dense(s, "style"), 0.5))


def test_np_lora_in_the_limit_leaves_the_styles_inputs_to_the_style():
    s = segment()
    x = s.down["style"].double().numpy()[2]
    np.testing.assert_allclose(merge(NPLoRA(1e9), s) @ x, dense(s, "style") @ x, rtol=1e-4, atol=1e-4)


@KERNELS
@pytest.mark.parametrize("rank", [0, 3, 50])
def test_svd_is_the_best_low_rank_sum(record_property, kernel, rank):
    s = segment(kernel)
    largest = 6
    check(record_property, SVD(rank), s, truncated(dense(s, "subject"), dense(s, "style"), rank or largest))
    assert SVD(rank).merge(s)[0].shape[1] == min(rank or largest, 10)


@KERNELS
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_magnitude_prune_and_ties(record_property, kernel, density):
    s = segment(kernel)
    parts = [trimmed(dense(s, role), density) for role in ROLES]
    check(record_property, MagnitudePrune(density), s, parts[0] + parts[1])
    check(record_property, TIES(density), s, elected_mean(*parts))
    check(record_property, TIES(density, scale=1.7), s, 1.7 * elected_mean(*parts))


@KERNELS
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_knots(record_property, kernel, density):
    s = segment(kernel)
    expected = knots(dense(s, "subject"), dense(s, "style"), density)
    check(record_property, KnOTS(density), s, expected)
    check(record_property, KnOTS(density, scale=1.7), s, 1.7 * expected)
    assert KnOTS(density).merge(s)[0].shape[1] == 10


@KERNELS
def test_tsv(record_property, kernel):
    s = segment(kernel)
    check(record_property, TSV(), s, tsv(dense(s, "subject"), dense(s, "style")))


@pytest.mark.parametrize(("policy", "reference"), [(KnOTS(1.0), lambda c, s: knots(c, s, 1.0)), (TSV(), tsv)])
def test_directions_that_are_not_there_do_not_count(record_property, policy, reference):
    """Repeated rows of A, empty columns of B, and a style that the subject holds too."""
    s = segment()
    s.down["style"][1] = 2 * s.down["style"][0]
    s.up["style"][:, 3:] = 0
    check(record_property, policy, s, reference(dense(s, "subject"), dense(s, "style")))


def test_tsv_of_orthogonal_deltas_is_their_sum():
    s = segment()
    basis = torch.linalg.qr(torch.randn(16, 10, generator=torch.Generator().manual_seed(3)))[0].T
    ups = torch.linalg.qr(torch.randn(20, 10, generator=torch.Generator().manual_seed(4)))[0]
    s.down.update(subject=basis[:4] * torch.tensor([[1.0], [2], [3], [4]]), style=basis[4:])
    s.up.update(subject=ups[:, :4], style=ups[:, 4:])
    np.testing.assert_allclose(merge(TSV(), s), dense(s, "subject") + dense(s, "style"), atol=1e-5)


@pytest.mark.parametrize("role", ROLES)
def test_a_layer_that_one_file_leaves_at_zero_is_the_other_s(role):
    """Task singular vectors take the other as it is; KnOTS trims it as TIES would trim the one delta that is left."""
    s = segment()
    s.up[role].zero_()
    (other,) = set(ROLES) - {role}
    np.testing.assert_allclose(merge(TSV(), s), dense(s, other), atol=1e-5)
    np.testing.assert_allclose(merge(KnOTS(1.0), s), dense(s, other), atol=1e-5)
    s.up[other].zero_()
    for policy in (TSV(), KnOTS()):
        assert not merge(policy, s).any()


def test_tsv_where_both_files_want_the_same():
    """The same delta twice is one direction claimed twice: both halves are kept, apart from one another."""
    s = segment(ranks=(1, 1))
    s.down["style"], s.up["style"] = s.down["subject"].clone(), s.up["subject"].clone()
    values = np.linalg.svd(merge(TSV(), s), compute_uv=False)
    assert np.isfinite(values).all() and values[0] <= np.linalg.norm(dense(s, "subject")) * (1 + 1e-5)


def test_ties_by_hand():
    """Agreement is averaged, the lighter side of a conflict dropped, a lone entry kept whole."""
    rows = {"subject": torch.tensor([[4.0, 4.0, 4.0, 0.0]]), "style": torch.tensor([[2.0, -3.0, -5.0, -6.0]])}
    s = SegmentDeltas("l", {role: rows[role] for role in ROLES}, {role: torch.ones(1, 1) for role in ROLES})
    assert TIES(density=1.0).merge(s).tolist() == [[3.0, 4.0, -5.0, -6.0]]


def draws(s, role, seed=0):
    """The uniform numbers of the policies; what they do with them is what is tested."""
    return uniform(s.name, role, seed, s.dense(role).flatten(1)).double().numpy()


@KERNELS
def test_dare_for_its_masks(record_property, kernel):
    s = segment(kernel)
    parts = [dropped(dense(s, role), 0.3, draws(s, role)) for role in ROLES]
    check(record_property, DARE(0.3), s, parts[0] + parts[1])


@KERNELS
def test_della_for_its_masks(record_property, kernel):
    s = segment(kernel)
    parts = [dropped(dense(s, role), keep_probability(dense(s, role), 0.4, 0.2), draws(s, role)) for role in ROLES]
    check(record_property, DELLA(0.4, 0.2), s, elected_mean(*parts))


def test_chance_keeps_the_right_share_and_the_expectation():
    """Over many layers: DARE keeps its density and is the sum on average; the draws are uniform and independent."""
    shares, total, layers = [], 0, 400
    s = segment(out=32, width=32)
    for i in range(layers):
        named = SegmentDeltas(f"layer {i}", s.down, {"subject": s.up["subject"], "style": s.up["style"] * 0})
        merged = merge(DARE(0.3), named)
        shares.append((merged != 0).mean())
        total = total + merged / layers
    assert np.mean(shares) == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / (layers * 1024)) ** 0.5)
    # Each entry of the mean has a standard deviation of |dW| sqrt((1 - p) / p / layers).
    expected = dense(s, "subject")
    deviation = (total - expected) / (np.abs(expected) * (0.7 / 0.3 / layers) ** 0.5)
    assert abs(deviation.mean()) < 0.13 and deviation.std() == pytest.approx(1, abs=0.1)
    one, two = draws(s, "subject").flatten(), draws(s, "style").flatten()
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.13
    assert not np.array_equal(draws(s, "subject", seed=1).flatten(), one)


@pytest.mark.parametrize("policy", [DARE(), DELLA(), TIES(), MagnitudePrune(), NPLoRA(), SVD(), KnOTS(), TSV()])
def test_a_merge_is_the_same_every_time_and_leaves_its_factors_alone(policy):
    s, untouched = segment(), segment()
    np.testing.assert_array_equal(merge(policy, s), merge(policy, s))
    for role in ROLES:
        assert torch.equal(s.up[role], untouched.up[role]) and torch.equal(s.down[role], untouched.down[role])


@pytest.mark.parametrize("policy", [DARE, DELLA, TIES, MagnitudePrune, KnOTS])
@pytest.mark.parametrize("density", [0, -0.1, 1.5])
def test_densities_out_of_range_are_refused(policy, density):
    with pytest.raises(ValueError, match="density"):
        policy(density=density)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="mu"):
        NPLoRA(-1)
    with pytest.raises(ValueError, match="epsilon"):
        DELLA(density=0.5, epsilon=0.5)
