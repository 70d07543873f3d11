"""Families whose layers mix the rows of a call: pictures of each prompt and latent are what they are alone."""

import pytest

from lora_conductor.fusion.policies import RECOMMENDED
from lora_conductor.fusion.routing import Refinement

from .catalogue import FAMILIES
from .routing import Routed

# Experts, chunks, the sequence first, the batch folded into the tokens, frames for a batch; and two plain ones.
MIXING = [
    "HiDream",
    "Hunyuan3Dv2_1",
    "PixelDiTT2I",
    "CosmosT2V",
    "PixArtSigma",
    "HunyuanDiT",
    "SVD_img2vid",
    "SD15",
    "Flux",
]


@pytest.fixture(scope="module", params=MIXING)
def routed(request, tmp_path_factory):
    if not FAMILIES[request.param].in_host:
        pytest.skip(f"this ComfyUI has no {request.param}")
    return Routed(FAMILIES[request.param], tmp_path_factory.mktemp("routed"))


@pytest.mark.parametrize("setting", ["recommended", "all"])
def test_batches_packing_and_replay_change_nothing(routed, setting, record_property):
    cell = routed.measure(setting)
    record_property("worst, of the range", cell.worst)
    assert cell.moved > 0.01 and cell.passed, cell


def test_frames_of_a_video_are_never_run_apart(tmp_path, monkeypatch):
    """SVD's batch is its frames, which see each other; its layers over time have rows of their own."""
    routed = Routed(FAMILIES["SVD_img2vid"], tmp_path)
    model = routed.fused(RECOMMENDED, Refinement())
    rows = []
    forward = model.model.diffusion_model.forward
    monkeypatch.setattr(
        model.model.diffusion_model, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    )
    routed.sample(model)
    assert rows and all(n % routed.family.batch == 0 for n in rows)
