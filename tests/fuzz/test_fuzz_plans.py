"""Plans made worse: read, or refused by a named error; also where they meet a model and while it samples."""

import json
import re
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.policies import KLSoft
from lora_conductor.fusion.records.plan import PlanError, loads
from lora_conductor.fusion.routing.refinement import Refinement
from lora_conductor.host.core.errors import ConductorError
from lora_conductor.host.fusing import plan_of_latent, replaying
from lora_conductor.host.fusing.attach import add_loras, set_policy
from lora_conductor.host.loras.file import read_lora
from lora_conductor.host.loras.patches import model_patches

from ..host import tiny
from . import cases, mutations
from .parsers.plans import PLANS

CORPUS = sorted((Path(__file__).parent / "corpus").glob("plans-*"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ("format", "version", "loras", "policy", "refinement", "sigmas", "roles", "layers", "calls", "frozen")


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_faults_that_were_found_stay_mended(file):
    assert cases.Outcome().case(PLANS, file.read_bytes()) is None


def test_the_corpus_is_refused():
    """Each of its files played, or ended in a raw error."""
    for file in CORPUS:
        with pytest.raises(PlanError):
            PLANS.parse(file.read_bytes())


@given(st.sampled_from(FIELDS), JSON, st.integers(0, 4))
@settings(max_examples=200, deadline=5000)
def test_any_json_in_any_field(field, value, seed):
    plain = json.loads(PLANS.seeds()[seed])
    plain[field] = value
    assert cases.Outcome().case(PLANS, json.dumps(plain).encode()) is None


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    model, folder = tiny.tiny_unet(), tmp_path_factory.mktemp("loras")
    shapes, loras = tiny.layer_shapes(model), []
    for role, seed in (("subject", 1), ("style", 2)):
        path = tiny.make_lora(folder / f"{role}.safetensors", shapes, seed=seed, size=0.2)
        loras.append((model_patches(read_lora(role, str(path)), model), role, 0.8))
    fused = add_loras(model, loras)
    plans = []
    for refinement in (Refinement(), Refinement(granularity="head"), Refinement(freeze_after=1)):
        routed = set_policy(fused, KLSoft(), refinement)
        plans.append(plan_of_latent(routed, tiny.sample(routed, steps=2, cfg=2.0)).dumps().encode())
    return fused, plans


def test_plans_made_worse_sample_or_are_refused(setting, record_property):
    fused, plans = setting
    good = tiny.sample(fused, steps=1, cfg=1.0)
    random, sampled, refused = Random(1), 0, 0
    for _ in range(400):
        data = mutations.json_of(random.choice(plans), random)
        try:
            routed = replaying(fused, loads(data))
        except (PlanError, ConductorError):
            refused += 1
            continue
        if sampled == 40:
            continue
        sampled += 1
        try:
            tiny.sample(routed, steps=2, cfg=2.0, batch=random.choice((1, 2)))
        except ConductorError as error:  # of more LoRAs: others could still have been loaded
            assert re.search("plan: it (was made for|also decides for)", str(error))
    record_property("sampled, refused", f"{sampled}, {refused}")
    assert sampled and refused
    assert torch.equal(tiny.sample(fused, steps=1, cfg=1.0), good)
