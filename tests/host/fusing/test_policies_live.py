"""Scheduled and whole-model policies through the host: each step is what core gives for that step's decisions."""

import pytest
import torch

from lora_conductor.fusion.policies import Chance, Composite, ESTLoRA, KLoRA, Switch
from lora_conductor.host.core import schedule_of
from lora_conductor.host.fusing import attachment_of, fused, record_of_latent, set_policy

from ...fusion.dense_policies import STYLE, SUBJECT, est_lora, k_lora
from .. import tiny
from ..parts import patches_by_part

ROLES = ("subject", "style")
STEPS, CFG, STRENGTH = 6, 3.0, 0.8


@pytest.fixture(scope="module", params=[tiny.tiny_flux, tiny.tiny_unet], ids=["flux", "unet"])
def setting(request, tmp_path_factory):
    """A model, the same with two LoRAs that share a third of their layers, and each file's part by role."""
    model = request.param()
    folder = tmp_path_factory.mktemp("loras")
    shapes = list(tiny.layer_shapes(model).items())
    files = {}
    for i, role in enumerate(ROLES):
        own = dict(shape for j, shape in enumerate(shapes) if j % 3 != i)
        path = tiny.make_lora(folder / f"{role}.safetensors", own, seed=i + 1, size=0.2)
        files[role] = (path, STRENGTH)
    loaded = fused(model, **files)
    return model, loaded, {lora.role: lora for lora in attachment_of(loaded).spec.loras}


def with_core(model, loras, decisions):
    """The model with core's own patches of the chosen roles; a layer of one LoRA keeps it."""
    model = model.clone()
    for i, role in enumerate(ROLES):
        chosen = {
            key: part
            for target, patch in loras[role].core_patches.items()
            for key, part, name in patches_by_part(target, patch, decisions)
            if name not in decisions or decisions[name][i]
        }
        model.add_patches(chosen, STRENGTH)
    return model


def alone(model, loras, role):
    """The model with core's own patches of one role, in all its layers."""
    model = model.clone()
    model.add_patches({target.core_key: patch for target, patch in loras[role].core_patches.items()}, STRENGTH)
    return model


def one_step(model, x, step):
    """One Euler step of the run, from the latent before it."""
    first = step == 0
    return tiny.sample(
        model,
        steps=STEPS,
        cfg=CFG,
        latent_image=x,
        noise=None if first else torch.zeros_like(x),
        disable_noise=not first,
        start_step=step,
        last_step=step + 1,
    )


def check(record_property, name, ours, reference):
    error = tiny.relative(ours, reference)
    record_property(name, error)
    print(f"{name}: {error:.1e} of the range")
    assert error < 1e-4


@pytest.mark.parametrize("tau", [2, 5])
def test_switch_is_core_with_one_lora_at_a_time(setting, record_property, tau):
    """The resting LoRA's own layers rest with it."""
    model, loaded, loras = setting
    x = tiny.latent(model)
    for step in range(STEPS):
        role = ROLES[step // tau % 2]
        x = one_step(alone(model, loras, role), x, step)
    switched = set_policy(loaded, Switch(tau))
    ours = tiny.sample(switched, steps=STEPS, cfg=CFG)
    weights = record_of_latent(switched, ours).weights
    assert [tuple(w) for w in weights[:, 0].T.tolist()] == [(SUBJECT, STYLE)[s // tau % 2] for s in range(STEPS)]
    check(record_property, f"switch every {tau}", ours, x)


def test_composite_is_the_mean_of_two_models(setting, record_property):
    """Every step runs from the same latent with each LoRA alone; Euler is linear in what they predict."""
    model, loaded, loras = setting
    x = tiny.latent(model)
    for step in range(STEPS):
        x = sum(one_step(alone(model, loras, role), x, step) for role in ROLES) / 2
    composite = set_policy(loaded, Composite())
    ours = tiny.sample(composite, steps=STEPS, cfg=CFG)
    assert (record_of_latent(composite, ours).weights == 0.5).all()
    check(record_property, "composite", ours, x)


@pytest.mark.parametrize("policy", [Switch(2), Composite()], ids=["switch", "composite"])
def test_a_run_that_fails_in_a_pass_leaves_the_next_one_good(setting, policy):
    model, loaded, _ = setting
    routed = set_policy(loaded, policy)
    good = tiny.sample(routed, steps=3, batch=2)
    calls = []

    def breaks(module, inputs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stopped")

    layer = attachment_of(routed).spec.layers[0]
    handle = model.model.get_submodule(layer.name).register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="stopped"):
        tiny.sample(routed, steps=3, batch=2)
    handle.remove()
    assert not any("forward" in module.__dict__ for module in model.model.modules())
    assert torch.equal(tiny.sample(routed, steps=3, batch=2), good)


@pytest.mark.parametrize("policy", [Switch(2), Composite()], ids=["switch", "composite"])
def test_one_lora_alone_is_always_on(setting, policy):
    model, _, loras = setting
    ours = fused(model, style=(loras["style"].path, STRENGTH), policy=policy)
    assert tiny.relative(tiny.sample(ours, steps=3), tiny.sample(alone(model, loras, "style"), steps=3)) < 1e-4


def dense(loras, name):
    """Dense deltas of both roles in a part of a layer that both have, and their ranks."""
    layer, _, rows = name.partition("[")
    own = slice(*map(int, rows[:-1].split(":"))) if rows else slice(None)
    deltas = [next(d for t, d in loras[role].deltas.items() if t.key == f"{layer}.weight") for role in ROLES]
    return [STRENGTH * d.dense().flatten(1)[own].numpy() for d in deltas], [d.rank for d in deltas]


@pytest.mark.parametrize(
    ("policy", "reference"),
    [
        (KLoRA("s"), lambda pairs, ranks, times: k_lora(pairs, ranks, "s", times)),
        (KLoRA("s*"), lambda pairs, ranks, times: k_lora(pairs, ranks, "s*", times)),
        (ESTLoRA(), lambda pairs, ranks, times: est_lora(pairs, 0.5, times)),
        (Chance(), None),
    ],
    ids=["k_lora_s", "k_lora_s_star", "est_lora", "random"],
)
def test_each_step_is_core_with_that_steps_choice(setting, record_property, policy, reference):
    """Decisions from dense matrices, then core's own patches by them, step by step: the same picture."""
    model, loaded, loras = setting
    routed = set_policy(loaded, policy)
    ours = tiny.sample(routed, steps=STEPS, cfg=CFG)
    record = record_of_latent(routed, ours)
    decided = [[tuple(w) for w in weights.T.tolist()] for weights in record.weights.unbind(1)]
    if reference is not None:
        behind = schedule_of(model.get_model_object("model_sampling"))
        pairs = zip(*(dense(loras, name) for name in record.layers), strict=True)
        assert decided == reference(*pairs, [behind(sigma) for sigma in record.sigmas[:-1]])
    assert any(row[0] != w for row in decided for w in row), "something should change on the way"
    x = tiny.latent(model)
    for step in range(STEPS):
        x = one_step(
            with_core(model, loras, {name: row[step] for name, row in zip(record.layers, decided, strict=True)}),
            x,
            step,
        )
    check(record_property, policy.name, ours, x)
