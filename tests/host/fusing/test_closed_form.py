"""What is decided in closed form against the straightforward computation: pictures, records and plans."""

from __future__ import annotations

import comfy.sample
import pytest
import torch

from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, Balanced, KLSoft, ScoredPolicy
from lora_conductor.fusion.routing import Refinement, call
from lora_conductor.host.fusing import fused, set_policy
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent

from .. import tiny

SCORED = {name: make() for name, make in POLICIES.items() if issubclass(make, ScoredPolicy)}
MORE = {
    "uneven": Balanced(evenness=0.5),
    "sharp": KLSoft(temperature=0.05),
    "both": KLSoft(share="both"),
}


TOLERANCE = 1e-5  # of the output range, float32: both sum in another order


RANKS = {"flux": (4, 4), "flux, other ranks": (3, 5), "flux, far apart": (8, 2), "unet": (4, 6)}


@pytest.fixture(scope="module", params=RANKS)
def loaded(request, tmp_path_factory):
    """A model with LoRAs of different sizes, and of ranks that are measured together or each for itself."""
    model = tiny.tiny_unet() if request.param == "unet" else tiny.tiny_flux()
    folder, shapes = tmp_path_factory.mktemp("closed"), tiny.layer_shapes(model)
    files = [
        tiny.make_lora(folder / f"{i}.safetensors", shapes, seed=i, rank=rank, size=size)
        for i, rank, size in zip((1, 2), RANKS[request.param], (0.3, 0.2), strict=True)
    ]
    return fused(model, *files)


def run(model):
    empty = tiny.latent(model, 2, 18)  # more tokens than are measured
    noise = comfy.sample.prepare_noise(empty, 0)
    made = tiny.sample(model, steps=2, cfg=4.0, batch=2, latent_image=empty, noise=noise)
    return made, record_of_latent(model, made), plan_of_latent(model, made)


@pytest.mark.parametrize(
    ("name", "lean"), [*((name, 0.0) for name in (SCORED | MORE)), ("balanced", 0.7), ("kl_soft", 0.7), ("energy", 0.7)]
)
def test_it_is_the_straightforward_computation(loaded, name, lean, monkeypatch):
    model = set_policy(loaded, (SCORED | MORE)[name], Refinement(lean=lean))
    made, record, plan = run(model)
    monkeypatch.setattr(call, "allows", lambda *_: False)
    expected, wanted, planned = run(model)
    assert tiny.relative(made, expected) < TOLERANCE
    assert record.layers == wanted.layers and plan.layers == planned.layers
    torch.testing.assert_close(record.scores, wanted.scores, rtol=1e-3, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(record.weights, wanted.weights, rtol=1e-3, atol=1e-5, equal_nan=True)
    for one, other in zip(plan.calls, planned.calls, strict=True):
        assert (one.step, one.condition, one.evaluation) == (other.step, other.condition, other.evaluation)
        for pair, same in zip(one.weights, other.weights, strict=True):
            for weight, its in zip(pair, same, strict=True):
                torch.testing.assert_close(weight, its, rtol=1e-3, atol=1e-5)


def test_settings_that_measure_more_are_not_closed():
    policy = SCORED["paper"]
    for settings in ({"smoothing": 0.5}, {"cap": 1.2}, {"granularity": "token"}, {"hysteresis": 0.1}, {"floor": 0.2}):
        assert not call.allows(policy, Refinement(**settings))
    assert call.allows(RECOMMENDED, Refinement(hysteresis=0.1)) and call.allows(policy, Refinement(lean=1.0))
