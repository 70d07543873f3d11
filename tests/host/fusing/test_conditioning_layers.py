"""Layers that a model runs on the text once, before the first step, are fused as the others are."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from lora_conductor.fusion.policies import RECOMMENDED, Composite, KLSoft, Paper, Solo, Sum, Switch
from lora_conductor.host.fusing import fused, record_of_latent

from .. import tiny
from ..families.bench import Bench
from ..families.catalogue import FAMILIES
from ..families.grid import MOVED

TEXT = "llm_adapter"
STRENGTHS = {"subject": 0.8, "style": 0.6}
POLICIES = [RECOMMENDED, Paper(), KLSoft(), Solo(), Switch(), Composite()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    if not FAMILIES["Anima"].in_host:
        pytest.skip("this ComfyUI has no Anima")
    return Bench(FAMILIES["Anima"], tmp_path_factory.mktemp("anima"))


@pytest.fixture(scope="module")
def files(bench):
    """LoRAs on the text's layers alone, so that nothing else can move the output."""
    shapes = {key: shape for key, shape in bench.shapes.items() if TEXT in key}
    folder = bench.folder
    return {role: tiny.make_lora(folder / f"{role}.safetensors", shapes, seed=i) for i, role in enumerate(STRENGTHS)}


def routed(bench, files, policy, **kw):
    loras = {role: (file, STRENGTHS[role]) for role, file in files.items()}
    return fused(bench.model(), **loras, policy=policy, **kw)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_one_lora_equals_one_loader_whatever_the_policy(bench, files, policy):
    one = {"subject": files["subject"]}
    core = bench.sample(tiny.core_stacked(bench.model(), (files["subject"], STRENGTHS["subject"])))
    assert tiny.relative(bench.base(torch.float32), core) > MOVED
    assert tiny.relative(bench.sample(routed(bench, one, policy)), core) < 1e-5


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_every_policy_decides_them_and_leaves_no_trace(bench, files, policy):
    out = bench.sample(routed(bench, files, policy))
    assert torch.isfinite(out).all() and tiny.relative(bench.base(torch.float32), out) > MOVED
    assert "extra_conds" not in bench.model().model.__dict__
    assert torch.equal(bench.sample(bench.model()), bench.base(torch.float32)), "the model is as it was"


def test_their_decisions_are_recorded_as_the_first_steps(bench, files):
    model = routed(bench, files, KLSoft())
    out = bench.sample(model)
    record = record_of_latent(model, out)
    assert record.layers and all(TEXT in name for name in record.layers)
    assert torch.isfinite(record.weights[:, :, 0]).all()


def test_a_sampling_inside_a_sampling_has_its_own_loras(bench, files):
    """The inner one finds the outer one's hook on the model they share."""
    outer = routed(bench, {"subject": files["subject"]}, Sum(), always_live=True)
    inner = routed(bench, {"style": files["style"]}, Sum(), always_live=True)
    alone, seen = bench.sample(inner), []

    def and_another(executor, *args, **kwargs):
        samples = executor(*args, **kwargs)
        seen.append(bench.sample(inner))
        return samples

    outer.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "and another", and_another)
    bench.sample(outer)
    assert torch.equal(seen[0], alone)
