"""Plans and frozen runs on real models: the same picture again, and the rest of a run at core's own speed."""

import json
import re
from pathlib import Path

import folder_paths
import pytest
import torch

from lora_conductor.fusion.policies import RECOMMENDED, TIES, Chance, Composite, KLSoft, Paper, StepContext, Sum, Switch
from lora_conductor.fusion.records.plan import Plan, PlannedCall, loads
from lora_conductor.fusion.routing import Router
from lora_conductor.fusion.routing.refinement import Refinement
from lora_conductor.host.core import schedule_of
from lora_conductor.host.core.errors import ConductorError
from lora_conductor.host.fusing import fused
from lora_conductor.host.fusing.attach import attachment_of, set_policy
from lora_conductor.host.fusing.plans import read_plan, replaying, write_plan
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent

from .. import adapter_files, tiny
from ..parts import patches_by_part
from .test_fusion_invariance import assert_untouched, snapshot

KW = {"steps": 4, "cfg": 2.0, "batch": 2}


def with_loras(model, folder, *, kinds=("lora", "lora")):
    shapes = tiny.layer_shapes(model)
    files = {}
    for role, seed, kind in (("subject", 1, kinds[0]), ("style", 2, kinds[1])):
        if kind == "lora":
            path = tiny.make_lora(folder / f"{role}.safetensors", shapes, seed=seed, size=0.2)
        else:
            path = adapter_files.make_file(folder / f"{role}.safetensors", kind, shapes, seed, 0.1)
        files[role] = (path, 0.8)
    return fused(model, **files)


@pytest.fixture(scope="module", params=[tiny.tiny_flux, tiny.tiny_unet], ids=["flux", "unet"])
def setting(request, tmp_path_factory):
    model = request.param()
    return model, with_loras(model, tmp_path_factory.mktemp("loras"))


CASES = {
    "recommended": (RECOMMENDED, Refinement()),
    "paper": (Paper(), Refinement()),
    "kl_soft, all of it": (
        KLSoft(),
        Refinement(smoothing=0.5, even_out=0.5, floor=0.1, cap=1.0, follow_cond=True, group_attention=True),
    ),
    "heads": (KLSoft(), Refinement(granularity="head")),
    "window": (KLSoft(), Refinement(start=0.2, end=0.7)),
    "random": (Chance(), Refinement(floor=0.2)),
    "sum": (Sum(), Refinement()),
    "composite": (Composite(), Refinement()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_replay_is_bit_identical_and_measures_nothing(setting, case, sampler, monkeypatch):
    model = set_policy(setting[1], *CASES[case])
    made = tiny.sample(model, sampler_name=sampler, **KW)
    plan = loads(plan_of_latent(model, made).dumps())
    again = replaying(setting[1], plan)
    measured = []
    monkeypatch.setattr("lora_conductor.fusion.routing.call.Call._scored", lambda *a: measured.append(a))
    assert torch.equal(tiny.sample(again, sampler_name=sampler, **KW), made)
    assert not measured


def test_a_plan_serves_other_batches_steps_and_seeds(setting):
    model = set_policy(setting[1], KLSoft())
    plan = plan_of_latent(model, tiny.sample(model, **KW))
    again = replaying(setting[1], plan)
    one = tiny.sample(again, steps=7, cfg=1.0, batch=3, seed=5)
    assert bool(one.isfinite().all())
    record = record_of_latent(again, one)
    assert record.policy["policy"] == "plan" and record.weights.shape[-1] == 7


def test_plan_files(setting):
    model = set_policy(setting[1], KLSoft())
    plan = plan_of_latent(model, tiny.sample(model, **KW))
    first, second = write_plan(plan, "routing_plans/test"), write_plan(plan, "routing_plans/test")
    assert first != second
    name = f"routing_plans/{first.rpartition('/')[2]} [output]"
    assert read_plan(name).digest == plan.digest
    with pytest.raises(ConductorError, match=r"filename_prefix.*cannot be used .*Name a file below"):
        write_plan(plan, "../../elsewhere/x")
    with pytest.raises(ConductorError, match=r"cannot be opened.*Pick another"):
        read_plan("no such plan.json [output]")


@pytest.mark.parametrize("policy", [KLSoft(), TIES(), Switch()], ids=lambda p: p.name)
def test_a_plan_of_other_loras_is_refused_by_the_node_it_comes_to(setting, policy, tmp_path):
    model = set_policy(setting[1], policy)
    plan = plan_of_latent(model, tiny.sample(model, **KW))
    shapes = tiny.layer_shapes(setting[0])
    other = tiny.make_lora(tmp_path / "other.safetensors", shapes, seed=9)
    with pytest.raises(ConductorError, match=r"plan: it was made for subject 'subject\.s.*carries subject 'other\.s"):
        replaying(fused(setting[0], other, other), plan)
    early = replaying(setting[0], plan)  # before any loader
    with pytest.raises(ConductorError, match=r"plan: it was made for subject 'subject\.s.*carries subject 'other\.s"):
        fused(early, other, other)


def test_a_lora_of_strength_0_is_named(setting, tmp_path):
    model = set_policy(setting[1], KLSoft())
    plan = plan_of_latent(model, tiny.sample(model, **KW))
    shapes = tiny.layer_shapes(setting[0])
    paths = {
        role: tiny.make_lora(tmp_path / f"{role}.safetensors", shapes, seed=seed, size=0.2)
        for role, seed in (("subject", 1), ("style", 2))
    }
    one_side = replaying(fused(setting[0], (paths["subject"], 0.8), (paths["style"], 0.0)), plan)
    with pytest.raises(ConductorError, match=r"also decides for style 'style\.s.*its strength is 0.*another strength"):
        tiny.sample(one_side, **KW)


@pytest.mark.parametrize("policy", [KLSoft(), TIES()], ids=lambda p: p.name)
def test_a_plan_may_come_before_between_and_after_its_loaders(setting, policy, tmp_path):
    model = set_policy(setting[1], policy)
    made = tiny.sample(model, **KW)
    plan = plan_of_latent(model, made)
    shapes = tiny.layer_shapes(setting[0])
    for place in range(3):
        model = setting[0]
        for i, (role, seed) in enumerate((("subject", 1), ("style", 2))):
            model = replaying(model, plan) if i == place else model
            path = tiny.make_lora(tmp_path / f"{role}.safetensors", shapes, seed=seed, size=0.2)
            model = fused(model, **{role: (path, 0.8)})
        model = replaying(model, plan) if place == 2 else model
        assert torch.equal(tiny.sample(model, **KW), made)


def changed(plan, **changes):
    return loads(json.dumps(json.loads(plan.dumps()) | changes))


def test_what_does_not_fit_the_model_is_refused_before_anything_samples(setting):
    model = set_policy(setting[1], Paper())
    plan = plan_of_latent(model, tiny.sample(model, **KW))
    with pytest.raises(ConductorError, match=r"plan: it decides 1 layers that both LoRAs do not have.*'renamed'"):
        replaying(setting[1], changed(plan, layers=["renamed", *plan.layers[1:]]))
    three = [[[1.0, 0.0, 1.0]]]
    calls = [{"step": 0, "condition": "positive.0", "evaluation": 0, "weights": [[three, three]] * len(plan.layers)}]
    with pytest.raises(ConductorError, match=r"for 3 heads, which do not divide the layer's"):
        replaying(setting[1], changed(plan, calls=calls))
    with pytest.raises(ConductorError, match=r"plan: a dict is no routing plan"):
        replaying(setting[1], {"format": "x"})


BAD_SETTINGS = {
    "refinement has 'sparkle', which is no setting": {"refinement": {"sparkle": 1}},
    "refinement.floor must be a number": {"refinement": {"floor": "a"}},
    "refinement: floor must lie between 0.0 and 1.0": {"refinement": {"floor": 7}},
    "refinement.freeze_after must be a whole number": {"refinement": {"freeze_after": 1.5}},
    "refinement: score must be one of": {"refinement": {"score": "taste"}},
    "refinement.follow_cond must be true or false": {"refinement": {"follow_cond": "yes"}},
    "policy.policy is missing": {"policy": {}},
    "policy.emphasis must be a number": {"policy": {"policy": "balanced", "emphasis": "loud"}},
    "frozen says what the rest of the run got, but": {"frozen": [[1.0, 0.0], [1.0, 0.0]]},
    "it was made with 'solo', which has nothing to repeat": {"policy": {"policy": "solo"}, "calls": []},
    "policy has 'sparkle', which is no setting": {"policy": {"policy": "ties", "sparkle": 1}, "calls": []},
    "policy.density must be a number": {"policy": {"policy": "ties", "density": []}, "calls": []},
    "policy: density must lie in": {"policy": {"policy": "ties", "density": 7.0}, "calls": []},
    "policy.seed must be a whole number": {"policy": {"policy": "dare", "seed": 2**63}, "calls": []},
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_settings_that_cannot_be_had_are_refused_by_their_path(message, tmp_path):
    call = PlannedCall(0, "positive.0", 0, ((1.0, 0.0), (1.0, 0.0)))
    made = Plan((), {"policy": "kl_soft"}, {}, (1.0, 0.0), ("a", "b"), (call,))
    folder = Path(folder_paths.get_input_directory())
    (folder / "bad_settings.json").write_text(json.dumps(json.loads(made.dumps()) | BAD_SETTINGS[message]))
    with pytest.raises(ConductorError, match=re.escape(message)):
        read_plan("bad_settings.json [input]")


def test_a_longer_run_than_was_frozen_is_replayed(setting):
    model = set_policy(setting[1], KLSoft(), Refinement(freeze_after=6))
    plan = plan_of_latent(model, tiny.sample(model, **KW))
    assert plan.frozen is None
    longer = tiny.sample(replaying(setting[1], plan), **KW | {"steps": 8})
    assert bool(longer.isfinite().all())


def test_grouping_attention_matters(setting):
    _, loaded = setting
    plain, grouped = (set_policy(loaded, Paper(), Refinement(group_attention=on)) for on in (False, True))
    assert not torch.equal(tiny.sample(plain, **KW), tiny.sample(grouped, **KW))


def frozen(model, policy, after=2, **settings):
    return set_policy(model, policy, Refinement(freeze_after=after, **settings))


@pytest.mark.parametrize("policy", [Paper(), KLSoft(), RECOMMENDED, Chance()], ids=lambda p: p.name)
def test_the_rest_of_a_frozen_run_is_core_with_its_weights(setting, policy, record_property):
    """Against core's own patches at those weights: each layer's LoRAs scaled by what was decided."""
    model, loaded = setting
    record_property(f"frozen {policy.name}", frozen_error(model, loaded, policy))


@pytest.mark.parametrize("kinds", [("lokr", "lora"), ("dora_out_lora", "loha"), ("oft", "diff")], ids="-".join)
def test_any_kind_of_adapter_freezes(kinds, tmp_path, record_property):
    model = tiny.tiny_unet()
    record_property(
        "frozen " + " ".join(kinds), frozen_error(model, with_loras(model, tmp_path, kinds=kinds), KLSoft())
    )


@pytest.mark.parametrize("kinds", [("lokr", "lora"), ("loha", "diff"), ("dora_out_lora", "loha")], ids="-".join)
def test_a_layer_in_parts_freezes_part_by_part(kinds, tmp_path, monkeypatch, record_property):
    """Other kinds than plain LoRAs lie whole in a file: as patches they give each part what is added while sampling."""
    routed = frozen(with_loras(tiny.tiny_flux(), tmp_path, kinds=kinds), KLSoft(), emphasis=1.0)
    patched = tiny.sample(routed, **KW)
    weights = record_of_latent(routed, patched).weights[0, :, 3]
    assert len(set(weights.tolist())) > 10
    monkeypatch.setattr(Router, "tells_passes_apart", True)
    added = tiny.sample(routed, **KW)
    error = tiny.relative(patched, added)
    record_property(f"parts of {' '.join(kinds)}", error)
    assert error < 1e-5


@pytest.mark.parametrize("policy", [Paper(), KLSoft(), RECOMMENDED], ids=lambda p: p.name)
def test_what_is_frozen_is_what_the_policy_says_of_the_middle_of_the_rest(setting, policy):
    routed = frozen(setting[1], policy, after=1)
    record = record_of_latent(routed, tiny.sample(routed, steps=6, cfg=1.0))
    log_ratio = (record.scores[0, :, 0] / record.scores[1, :, 0]).log()
    behind = schedule_of(routed.get_model_object("model_sampling"))(record.sigmas[3])
    wanted = torch.stack(policy.weights(log_ratio, 0.0, StepContext(3, 6, schedule=behind)))
    torch.testing.assert_close(record.weights[:, :, 5], wanted, rtol=1e-4, atol=1e-5)


def test_freezing_waits_for_the_window_to_open(setting):
    routed = set_policy(setting[1], KLSoft(), Refinement(freeze_after=1, start=0.3))
    record = record_of_latent(routed, tiny.sample(routed, steps=6, cfg=1.0))
    assert (record.weights[:, :, :2] == 1).all() and not record.scores[:, :, 2].isnan().any()
    assert record.scores[:, :, 3:].isnan().all()
    torch.testing.assert_close(record.weights[:, :, 3:].sum(0), torch.ones(len(record.layers), 3, dtype=torch.float64))


def frozen_error(model, loaded, policy):
    before = snapshot(model)
    plain = tiny.sample(model, **KW)
    routed = frozen(loaded, policy, emphasis=1.0)
    made = tiny.sample(routed, **KW)
    record = record_of_latent(routed, made)
    means = record.weights[:, :, 2]
    assert torch.equal(record.weights[:, :, 3], means)

    states: list[torch.Tensor] = []
    live = set_policy(loaded, policy, Refinement(emphasis=1.0))
    tiny.sample(live, callback=lambda step, x0, x, total: states.append(x.clone()), **KW)
    merged = model.clone()
    index = {name: i for i, name in enumerate(record.layers)}
    for role, lora in enumerate(attachment_of(loaded).spec.loras):
        for target, patch in lora.core_patches.items():
            for key, part, name in patches_by_part(target, patch, index):
                merged.add_patches({key: part}, lora.strength * float(means[role, index[name]]))
    wanted = _continued(merged, states[2], step=2)
    error = tiny.relative(made, wanted)
    assert error < 1e-5
    assert torch.equal(tiny.sample(model, **KW), plain)
    assert_untouched(model, before)
    return error


def _continued(model, x, step):
    """Go on from a state in the middle of a run (Euler keeps nothing else)."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", KW["steps"])[step:]
    # The sampler begins by scaling noise and latent: chosen so that it gives back the state.
    noise = x / sampling.noise_scaling(sigmas[0], torch.ones_like(x), torch.zeros_like(x))
    return tiny.sample(model, noise=noise, sigmas=sigmas, **KW)


def test_a_frozen_plan_is_replayed_too(setting):
    routed = frozen(setting[1], KLSoft())
    made = tiny.sample(routed, **KW)
    assert torch.equal(tiny.sample(replaying(setting[1], plan_of_latent(routed, made)), **KW), made)


def test_freezing_runs_no_fused_layer_afterwards(setting, monkeypatch):
    from lora_conductor.fusion.layers import FusedLayer

    calls = []
    monkeypatch.setattr(
        FusedLayer, "fuse", lambda self, *a, _f=FusedLayer.fuse: calls.append(self.name) or _f(self, *a)
    )
    tiny.sample(frozen(setting[1], KLSoft(), after=1), steps=4, cfg=1.0)
    layers = len(attachment_of(setting[1]).spec.layers)
    assert len(calls) == layers


def test_an_interrupted_frozen_run_leaves_nothing(setting):
    model, loaded = setting
    before, good = snapshot(model), tiny.sample(model, **KW)

    def stop(step, *rest):
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tiny.sample(frozen(loaded, KLSoft()), callback=stop, **KW)
    assert torch.equal(tiny.sample(model, **KW), good)
    assert_untouched(model, before)
