"""Chains in which the order matters: control LoRAs, replaced weights, adapters that look at the weight.

In every order, with our loader and core's after one another, the picture is that of core's loaders in the same order.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Paper, Sum
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.baking import BakeSettings, bake
from lora_conductor.host.fusing import attachment_of, fused, left_on, load_loras, replaying, set_policy
from lora_conductor.host.fusing.report import loader_report, run_report
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent
from lora_conductor.host.loras import LoraChoice

from .. import tiny
from ..adapter_files import Maker, make_file

IMG_IN = "diffusion_model.img_in"
EXACT = 1e-5


@pytest.fixture(scope="module")
def flux():
    return tiny.tiny_flux()


@pytest.fixture(scope="module")
def shapes(flux):
    """Some linear layers, the first one among them."""
    every = tiny.layer_shapes(flux)
    return {key: shape for key, shape in every.items() if "img_in" in key or "blocks.0." in key}


@pytest.fixture(scope="module")
def files(flux, shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    found = {
        "plain": tiny.make_lora(folder / "plain.safetensors", shapes, seed=1),
        "other": tiny.make_lora(folder / "other.safetensors", shapes, seed=2),
        "third": tiny.make_lora(folder / "third.safetensors", shapes, seed=3),
    }
    for kind in ("dora_out_lora", "dora_in_lora", "glora", "oft", "boft"):
        found[kind] = make_file(folder / f"{kind}.safetensors", kind, shapes, seed=4)
    found["control"], found["set"] = folder / "control.safetensors", folder / "set.safetensors"
    out, width = shapes[f"{IMG_IN}.weight"]
    plain = {key: value for key, value in load_file(found["third"]).items() if IMG_IN not in key}
    control = Maker(5).lora((out, 2 * width)) | {"reshape_weight": torch.tensor([out, 2 * width])}
    save_file(plain | {f"{IMG_IN}.{leaf}": value for leaf, value in control.items()}, found["control"])
    maker, replaced = Maker(6), list(shapes.items())[::2]
    save_file(
        {f"{key.removesuffix('.weight')}.set_weight": maker.normal(*s, std=s[1] ** -0.5) for key, s in replaced},
        found["set"],
    )
    return found


class Ours(tuple):
    """Files for our loader: ``(subject, style)``, either may be empty."""


def chained(model, files, chain, policy=None, **settings):
    """The model behind a chain of loaders: names of files for core's, :class:`Ours` for ours."""
    for step in chain:
        if isinstance(step, Ours):
            roles = {role: (files[name], 0.8) for role, name in zip(("subject", "style"), step, strict=False) if name}
            model = fused(model, **roles)
        else:
            model = tiny.core_stacked(model, (files[step], 0.8))
    return model if policy is None else set_policy(model, policy, **settings)


def of_core(model, files, chain):
    names = [name for step in chain for name in (step if isinstance(step, Ours) else [step]) if name]
    return tiny.core_stacked(model, *((files[name], 0.8) for name in names))


@pytest.fixture(scope="module")
def error(flux, files):
    """How far our picture of a chain is from core's."""
    plain = tiny.sample(flux)

    def measured(chain, *policy, **settings):
        core = tiny.sample(of_core(flux, files, chain))
        assert tiny.relative(plain, core) > 0.02, "the LoRAs should matter"
        return tiny.relative(tiny.sample(chained(flux, files, chain, *policy, **settings)), core)

    return measured


ODD = ["control", "set", "dora_in_lora", "oft"]


@pytest.mark.parametrize("odd", [*ODD, "dora_out_lora", "glora", "boft"])
def test_one_role_alone_is_core_bit_for_bit_wherever_core_s_loader_stands(error, odd):
    for chain in ([Ours(["plain"]), odd], [odd, Ours(["plain"])]):
        assert error(chain) == 0, chain
    assert error(["other", Ours(["", odd]), "plain"], RECOMMENDED) == 0
    assert error([Ours([odd]), "plain", Ours(["other"])], Paper()) == 0


@pytest.mark.parametrize("odd", ODD)
def test_sum_is_in_the_order_of_loading(flux, files, error, odd):
    for chain in ([Ours([odd, "plain"])], [Ours(["plain", odd])], [Ours(["plain", "other"]), odd, Ours(["third"])]):
        assert error(chain, Sum()) == 0, chain
    # The router may stand anywhere.
    model = chained(set_policy(flux, Sum()), files, [Ours(["plain", "other"]), odd, Ours(["third"])])
    core = of_core(flux, files, ["plain", "other", odd, "third"])
    assert torch.equal(tiny.sample(model), tiny.sample(core))


@pytest.mark.parametrize("odd", ODD)
def test_what_is_added_while_sampling_keeps_the_order(flux, files, error, odd):
    """The sum of two roles, live: layers that cannot keep the order are left to core, and named."""
    for chain in ([Ours(["plain", "other"]), odd], [odd, Ours(["plain", "other"])]):
        assert error(chain, Sum(), always_live=True) < EXACT, chain
    after = chained(flux, files, [Ours(["plain", "other"]), odd], Sum(), always_live=True)
    left = left_on(after)
    assert f"{IMG_IN}" in left and all(name in loader_report(after, False, []) for name in list(left)[:1])
    assert "not routed" in run_report(after, record_of_latent(after, tiny.sample(after)), {}, None)


@pytest.mark.parametrize("odd", ["dora_out_lora", "dora_in_lora", "oft"])
def test_an_adapter_that_looks_at_the_weight_does_not_see_what_follows(flux, files, error, odd):
    chain = [Ours([odd, "other"]), "plain"]
    assert error(chain, Sum(), always_live=True) < EXACT
    model = chained(flux, files, chain)
    assert len(left_on(model)) == len(attachment_of(model).spec.layers)


@pytest.mark.parametrize("policy", [RECOMMENDED, Paper(), KLSoft()])
@pytest.mark.parametrize("chain", [("plain", "control"), ("control", "plain")])
def test_a_control_lora_beside_another_one_samples(flux, files, policy, chain):
    """One of the two for every other layer: only the first layer takes both, as core would."""
    whole = chained(flux, files, [Ours(chain)], policy)
    tiny.sample(whole, cfg=2.0)
    routed = chained(flux, files, [Ours(["plain", "other"]), "control"], policy)
    tiny.sample(routed, cfg=2.0, steps=2)


def test_what_comes_too_late_is_named(flux, files):
    """Core logs an error and leaves it out; here the report says what to do."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    names = []
    for name in ("control", "plain"):
        names.append(f"order_{name}.safetensors")
        (folder / names[-1]).write_bytes(files[name].read_bytes())
    choices = [LoraChoice(name, role, 0.8, 1.0) for name, role in zip(names, ("subject", "style"), strict=True)]
    model, _, report = load_loras(flux, None, choices)
    assert f"{IMG_IN}.weight" in report and "load this one first" in report
    assert IMG_IN not in {layer.name for layer in attachment_of(model).spec.layers}
    for name in names:
        (folder / name).unlink()


def test_a_run_leaves_the_model_as_it_was(flux, files):
    model = chained(flux, files, [Ours(["plain", "other"]), "control"], Paper())
    before, version = dict(model.patches), model.patches_uuid
    first = tiny.sample(model, steps=2)
    assert model.patches == before and model.patches_uuid == version
    assert torch.equal(tiny.sample(model, steps=2), first)
    core = tiny.core_stacked(flux, (files["control"], 0.8))
    expected = tiny.sample(core)
    tiny.sample(model)
    assert torch.equal(tiny.sample(core), expected)


def test_frozen_runs_and_plans_keep_the_order(flux, files):
    model = chained(flux, files, [Ours(["plain", "other"]), "dora_out_lora"])
    live = set_policy(model, Paper(), Refinement(freeze_after=1))
    samples = tiny.sample(live, steps=3)
    assert not record_of_latent(live, samples).layers, "all layers of the file are left to core"
    core = of_core(flux, files, ["plain", "other", "dora_out_lora"])
    assert tiny.relative(samples, tiny.sample(core, steps=3)) < EXACT
    half = chained(flux, files, [Ours(["plain", "other"]), "set"])
    live = set_policy(half, Paper())
    samples = tiny.sample(live, steps=2)
    record, plan = record_of_latent(live, samples), plan_of_latent(live, samples)
    assert not set(record.layers) & left_on(half).keys() and record.layers
    assert torch.equal(tiny.sample(replaying(half, plan), steps=2), samples)


def test_baking_writes_layers_that_are_left_to_core_as_their_sum(flux, files, shapes):
    model = chained(flux, files, [Ours(["plain", "other"]), "dora_out_lora"], KLSoft())
    samples = tiny.sample(model)
    baked, _ = bake(model, None, samples, BakeSettings())
    summed, _ = bake(set_policy(model, Sum()), None, None, BakeSettings())
    assert not baked.left_out and len(baked.ranks) == len(summed.ranks) >= len(shapes)
    assert baked.tensors.keys() == summed.tensors.keys()
    assert all(torch.equal(value, summed.tensors[key]) for key, value in baked.tensors.items())


def test_one_role_with_a_setting_that_concerns_it_is_added_while_sampling(flux, files):
    model = fused(flux, (files["plain"], 0.8))
    assert attachment_of(model).live is None
    emphasised = set_policy(model, RECOMMENDED, Refinement(emphasis=2.0))
    assert attachment_of(emphasised).live is not None and not emphasised.patches
    assert tiny.relative(tiny.sample(emphasised, cfg=3.0), tiny.sample(model, cfg=3.0)) > 0.01
    assert torch.equal(tiny.sample(set_policy(emphasised, RECOMMENDED), cfg=3.0), tiny.sample(model, cfg=3.0))
