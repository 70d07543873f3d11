"""Core's multi-GPU split of the prompts, run on two CPU "devices": the same pictures, records and plans as on one.

Core then calls the model's copies from one thread a device, at the same time.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, Balanced, KLSoft, Paper
from lora_conductor.fusion.routing.refinement import Refinement
from lora_conductor.host import fusing
from lora_conductor.host.fusing.attach import attachment_of, set_policy
from lora_conductor.host.fusing.plans import replaying
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent

from .. import tiny

OTHER = torch.device("cpu:0")
TOLERANCE = 1e-5  # of the range
KIND = comfy.model_patcher.ModelPatcher

pytestmark = pytest.mark.skipif(
    not hasattr(KIND, "deepclone_multigpu"), reason="this ComfyUI does not split a run over devices"
)


def flux(*_: Any, **__: Any) -> Any:
    model = tiny.tiny_flux()
    model.cached_patcher_init = (flux, ())  # how core makes the other device's copy
    return model


def unet(*_: Any, **__: Any) -> Any:
    model = tiny.tiny_unet()
    model.cached_patcher_init = (unet, ())
    return model


MODELS = {"flux": flux, "unet": unet}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def fused(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with a LoRA in each role, of different ranks."""
    model = request.param()
    folder, shapes = tmp_path_factory.mktemp("two"), tiny.layer_shapes(model)
    subject, style = (
        tiny.make_lora(folder / f"{role}.safetensors", shapes, rank=rank, seed=seed, size=0.3)
        for seed, (role, rank) in enumerate((("subject", 4), ("style", 6)), 1)
    )
    return fusing.fused(model, subject, style)


def on_two(model: Any) -> Any:
    """The model with a copy on another device, as core's multi-GPU node makes it."""
    model = model.clone()
    copy = model.deepclone_multigpu(new_load_device=OTHER)
    copy.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [copy])
    model.match_multigpu_clones()
    model.model_options["multigpu_options"] = {d: {"relative_speed": 1.0} for d in (model.load_device, OTHER)}
    return model


def sample(model: Any, **changes: Any) -> torch.Tensor:
    return tiny.sample(model, **{"steps": 5, "cfg": 2.5, "batch": 2, "seed": 3, **changes})


def check(one: Any, two: Any, **changes: Any) -> None:
    """Pictures, records and plans of the two agree; so does the picture of either plan."""
    expected, found = sample(one, **changes), sample(two, **changes)
    assert tiny.relative(found, expected) <= TOLERANCE
    wanted, got = record_of_latent(one, expected), record_of_latent(two, found)
    assert got.layers == wanted.layers
    for name in ("weights", "scores"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-3, atol=1e-5, equal_nan=True)
    plan, other = plan_of_latent(one, expected), plan_of_latent(two, found)
    assert other.layers == plan.layers
    assert [(c.step, c.condition, c.evaluation) for c in other.calls] == [
        (c.step, c.condition, c.evaluation) for c in plan.calls
    ]
    for call, same in zip(plan.calls, other.calls, strict=True):
        for pair, copy in zip(call.weights, same.weights, strict=True):
            for a, b in zip(pair or (), copy or (), strict=True):
                torch.testing.assert_close(torch.as_tensor(b), torch.as_tensor(a), rtol=1e-3, atol=1e-4)


@tiny.in_turn("fused", MODELS, "name", sorted(POLICIES))
def test_every_policy(fused: Any, name: str) -> None:
    one = set_policy(fused, POLICIES[name]())
    check(one, on_two(one))


SETTINGS = {
    "even_out": Refinement(even_out=1.0),
    "smoothing": Refinement(smoothing=0.7),
    "follow_cond": Refinement(follow_cond=True, smoothing=0.3),
    "group_attention": Refinement(group_attention=True),
    "head": Refinement(granularity="head"),
    "token": Refinement(granularity="token", blur=1.5),
    "cap": Refinement(cap=1.1),
    "window": Refinement(start=0.3, end=0.8),
    "frozen": Refinement(freeze_after=2, emphasis=1.0),
    "frozen, emphasised": Refinement(freeze_after=2, emphasis=2.0),
    "pushed": Refinement(emphasis=4.0),
    "frozen, pushed": Refinement(freeze_after=2, emphasis=4.0),
    "everything": Refinement(even_out=0.5, smoothing=0.5, group_attention=True, floor=0.1, time_lead=1.0, cap=1.5),
}


@pytest.mark.parametrize("policy", [KLSoft(), RECOMMENDED], ids=["kl_soft", "recommended"])
@tiny.in_turn("fused", MODELS, "name", SETTINGS)
def test_every_setting(fused: Any, name: str, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = set_policy(fused, policy, SETTINGS[name])
    two = on_two(one)
    if name == "everything":
        # Together they amplify the rounding of a batch of four against two of two (5e-5): one device does it so, too.
        monkeypatch.setattr(one.model, "memory_required", lambda *a, **k: 1e30)
    check(one, two)


def test_hysteresis(fused: Any) -> None:
    one = set_policy(fused, Paper(), Refinement(hysteresis=0.2))
    check(one, on_two(one))


@pytest.mark.parametrize("sampler_name", ["heun", "dpmpp_2m"])
def test_samplers_with_more_evaluations(fused: Any, sampler_name: str) -> None:
    one = set_policy(fused, Balanced(), Refinement(smoothing=0.5))
    check(one, on_two(one), sampler_name=sampler_name)


def test_a_replayed_plan(fused: Any) -> None:
    one = set_policy(fused, KLSoft())
    plan = plan_of_latent(one, sample(one))
    expected = sample(replaying(fused, plan))
    assert tiny.relative(sample(on_two(replaying(fused, plan))), expected) <= TOLERANCE


def test_the_devices_are_really_both_used(fused: Any) -> None:
    """Each runs one prompt, in a thread of its own, on its own copy of the model and of the deltas."""
    two = on_two(set_policy(fused, KLSoft()))
    (copy,) = two.get_additional_models_with_key("multigpu")
    seen: dict[int, set[int]] = {}

    def watch(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.setdefault(id(executor.class_obj), set()).add(threading.get_ident())
        return executor(*args, **kwargs)

    two.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    sample(two)
    assert set(seen) == {id(two.model), id(copy.model)}
    assert seen[id(two.model)].isdisjoint(seen[id(copy.model)])


def test_the_policy_may_change_after_the_devices_were_chosen(fused: Any) -> None:
    """The router may stand after core's multi-GPU node."""
    two = on_two(fused)
    routed = set_policy(two, KLSoft(), Refinement(smoothing=0.5))
    check(set_policy(fused, KLSoft(), Refinement(smoothing=0.5)), routed)


def test_every_device_has_its_own_deltas(fused: Any) -> None:
    two = on_two(set_policy(fused, KLSoft()))
    used: dict[int, set[int]] = {}
    spec = attachment_of(two).spec
    sample(two)
    (copy,) = two.get_additional_models_with_key("multigpu")
    for model in (two.model, copy.model):
        patcher = two if model is two.model else copy
        patcher.pre_run()
        layers = spec.layers_on(model)
        patcher.cleanup()
        used[id(model)] = {id(layer) for layer in layers}
    assert used[id(two.model)].isdisjoint(used[id(copy.model)])


def test_a_failed_run_leaves_both_as_they_were(fused: Any) -> None:
    before = sample(set_policy(fused, KLSoft()))
    two = on_two(set_policy(fused, KLSoft(), replace(Refinement(), freeze_after=2, emphasis=1.0)))

    def fail(step: int, *_: Any) -> None:
        if step == 3:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        sample(two, callback=fail)
    assert torch.equal(sample(set_policy(fused, KLSoft())), before)
    assert tiny.relative(sample(on_two(set_policy(fused, KLSoft()))), before) <= TOLERANCE
