"""SSR-Merge against the ridge regression it solves, done densely in float64."""

import numpy as np
import pytest
import torch

from lora_conductor.fusion.adapters import Geometry, LowRankDelta
from lora_conductor.fusion.calibration import Calibrator
from lora_conductor.fusion.layers import FusedLayer
from lora_conductor.fusion.policies import Calibration, SSRMerge
from lora_conductor.fusion.roles import ROLES

from ..dense_policies import ssr_merge

RANKS = {"subject": 3, "style": 4}


def layer(kernel=(), width=10, out=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    deltas = [
        (
            role,
            0.5 + i,
            LowRankDelta(
                torch.randn(rank, width, *kernel, generator=generator), torch.randn(out, rank, generator=generator), 0.7
            ),
        )
        for i, (role, rank) in enumerate(RANKS.items())
    ]
    geometry = Geometry(width, out, kernel, (1,) * len(kernel), (1,) * len(kernel), (1,) * len(kernel))
    return FusedLayer("layer", geometry, deltas)


def calibrated(fused, inputs, ridge=1e-4):
    calibrator = Calibrator([fused])
    for role, calls in inputs.items():
        for x in calls:
            calibrator.observe(role, fused, x)
    policy = SSRMerge(ridge, Calibration(calibrator.moments(), ()))
    up, down = policy.merge(fused.segment_deltas(fused.segments[0]))
    return up.double().numpy() @ down.double().flatten(1).numpy()


def dense(fused):
    s = fused.segment_deltas(fused.segments[0])
    return [(s.up[role].double().numpy(), s.down[role].double().flatten(1).numpy()) for role in ROLES]


def linear_inputs(batches=(2, 3), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {role: [torch.randn(n, 5, 10, generator=generator) for n in batches] for role in ROLES}


def columns(calls):
    """[in, tokens] of several calls of a linear."""
    return np.concatenate([x.double().reshape(-1, x.shape[-1]).numpy() for x in calls]).T


@pytest.mark.parametrize("ridge", [1e-4, 0.5])
def test_linear_equals_the_ridge_regression(record_property, ridge):
    fused, inputs = layer(), linear_inputs()
    expected = ssr_merge(dense(fused), [columns(inputs[role]) for role in ROLES], ridge)
    error = np.abs(calibrated(fused, inputs, ridge) - expected).max() / np.abs(expected).max()
    record_property("max error", error)
    assert error < 1e-5


def test_convolution_equals_the_ridge_regression_on_patches(record_property):
    fused = layer(kernel=(3, 3))
    generator = torch.Generator().manual_seed(1)
    inputs = {role: [torch.randn(2, 10, 6, 5, generator=generator)] for role in ROLES}
    patches = [
        torch.nn.functional.unfold(inputs[role][0].double(), 3, padding=1).transpose(0, 1).flatten(1).numpy()
        for role in ROLES
    ]
    expected = ssr_merge(dense(fused), patches, 1e-4)
    error = np.abs(calibrated(fused, inputs) - expected).max() / np.abs(expected).max()
    record_property("max error", error)
    assert error < 1e-5


def test_each_loras_own_inputs_get_its_own_delta():
    """While both kinds of inputs together have no more directions than the joined rank, routing is perfect."""
    fused, inputs = layer(), linear_inputs()
    for x in inputs["subject"]:
        x[..., 3:] = 0
    for x in inputs["style"]:
        x[..., :3] = x[..., 7:] = 0
    merged, parts = calibrated(fused, inputs, ridge=1e-8), [up @ down for up, down in dense(fused)]
    total = sum(parts)
    for part, role in zip(parts, ROLES, strict=True):
        x = columns(inputs[role])
        assert np.abs(merged @ x - part @ x).max() < 1e-3 * np.abs(total @ x - part @ x).max()


def test_the_same_inputs_for_both_give_half_of_each():
    fused, inputs = layer(), linear_inputs()
    inputs["style"] = inputs["subject"]
    total = sum(up @ down for up, down in dense(fused))
    # Nothing tells the two apart, and least squares split the difference: why each LoRA needs a prompt of its own.
    np.testing.assert_allclose(calibrated(fused, inputs, ridge=1e-9), total / 2, rtol=1e-4, atol=1e-4)


def test_a_layer_calibration_did_not_reach_keeps_the_sum():
    fused = layer()
    total = sum(up @ down for up, down in dense(fused))
    np.testing.assert_allclose(calibrated(fused, {"subject": linear_inputs()["subject"]}), total, rtol=1e-5, atol=1e-5)


def test_no_merge_without_calibration():
    fused = layer()
    with pytest.raises(ValueError, match="calibrated"):
        SSRMerge().merge(fused.segment_deltas(fused.segments[0]))
    with pytest.raises(ValueError, match="ridge"):
        SSRMerge(ridge=-1)
