"""How far a file's picture is from the run's: in the report, against core's own loader with the file."""

from __future__ import annotations

import json
import re

import comfy.model_management
import comfy.patcher_extension
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors import safe_open

from lora_conductor.fusion.policies import RECOMMENDED, Chance, Composite, KLSoft, Paper
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.baking import BakeSettings, bake_to_file
from lora_conductor.host.fusing import attachment_of, fused, set_policy

from .. import tiny

SAID = re.compile(r"a picture's distance: at step (\d+) the model predicts one ([\d.]+)%")


@pytest.fixture(scope="module", params=[tiny.world_flux, tiny.tiny_unet], ids=["flux", "unet"])
def loaded(request, tmp_path_factory):
    model, folder = request.param(), tmp_path_factory.mktemp("loras")
    shapes = tiny.layer_shapes(model)
    files = [tiny.make_lora(folder / f"{i}.safetensors", shapes, seed=i, size=0.2) for i in range(2)]
    return model, fused(model, *files)


def baked(routed, made, monkeypatch, folder, step=None):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
    return bake_to_file(routed, None, made, BakeSettings(step=step), "loras/fused")


@pytest.mark.parametrize("policy", [KLSoft(), Paper(), RECOMMENDED, Chance()], ids=lambda policy: policy.name)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_it_is_what_cores_loader_makes_of_the_file(loaded, policy, cfg, tmp_path, monkeypatch, record_property):
    model, with_loras = loaded
    routed = set_policy(with_loras, policy, Refinement(time_lead=2.0))
    made = tiny.sample(routed, steps=4, cfg=cfg)
    call = next(iter(attachment_of(routed).live.kept)).call
    file, report = baked(routed, made, monkeypatch, tmp_path)
    step, said = SAID.search(report).groups()
    assert int(step) == 3

    by_core = tiny.core_stacked(model, (file.path, 1.0))
    comfy.model_management.load_models_gpu([by_core])
    with torch.inference_mode():
        again = by_core.model.apply_model(*call.args, **call.kwargs)
    rows = torch.cat([torch.arange(1) + i for i, key in enumerate(call.batch.keys) if "positive" in key])
    mine, other = call.output[rows], again[rows]
    wanted = float((mine - other).square().mean().sqrt() / (mine.max() - mine.min()))
    record_property(f"{policy.name}, cfg {cfg:g}", wanted)
    assert float(said) == pytest.approx(100 * wanted, abs=0.06)
    assert wanted > 1e-4  # the weights move with time
    with safe_open(file.path, "pt") as written:
        own = json.loads(written.metadata()["lora_conductor"])["picture_apart"]
    assert own["step"] == 3 and own["of_range"] == pytest.approx(wanted, rel=0.02)


def test_one_step_is_that_step(loaded, tmp_path, monkeypatch):
    _, with_loras = loaded
    routed = set_policy(with_loras, KLSoft())
    made = tiny.sample(routed, steps=4, cfg=1.0)
    _, report = baked(routed, made, monkeypatch, tmp_path, step=2)
    assert float(SAID.search(report)[2]) == 0.0


def test_where_it_is_not_known_nothing_is_said(loaded, tmp_path, monkeypatch):
    """Passes of one LoRA each, an older run; and the model goes on as before."""
    _, with_loras = loaded
    routed = set_policy(with_loras, Composite())
    made = tiny.sample(routed, steps=2)
    assert "a picture's distance" not in baked(routed, made, monkeypatch, tmp_path)[1]
    routed = set_policy(with_loras, KLSoft())
    older, newer = tiny.sample(routed, steps=2), tiny.sample(routed, steps=2, seed=1)
    assert "a picture's distance" not in baked(routed, older, monkeypatch, tmp_path)[1]
    assert "a picture's distance" in baked(routed, newer, monkeypatch, tmp_path)[1]
    assert torch.equal(tiny.sample(routed, steps=2), older)
