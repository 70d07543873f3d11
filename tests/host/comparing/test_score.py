"""Pictures scored against references: the grid's Judge and Fusion Score, by the same encoders."""

import pytest
import torch

from lora_conductor.host.comparing import Judge, fusion_score
from lora_conductor.host.core import ConductorError
from lora_conductor.host.guiding import GuidancePlan
from lora_conductor.host.vision import load_metric_encoder

from .. import tiny_encoders

ROLES = ("subject", "style")


@pytest.fixture
def encoders(tmp_path):
    with torch.inference_mode():
        return {
            "clip": load_metric_encoder(str(tiny_encoders.write_clip(tmp_path / "clip.safetensors"))),
            "dino": load_metric_encoder(str(tiny_encoders.write_dino(tmp_path / "dino.safetensors"))),
        }


@pytest.fixture
def references():
    return {role: tiny_encoders.smooth_picture(seed, 80, batch=2) for seed, role in enumerate(ROLES)}


def pictures(count):
    return torch.cat([tiny_encoders.smooth_picture(7 + seed) for seed in range(count)])


@pytest.mark.parametrize("has_dino", [True, False])
def test_the_judge_and_guidance_compare_alike_and_as_fusion_score_does(encoders, references, has_dino):
    dino = encoders["dino"] if has_dino else None
    (image,) = pictures(1)
    with torch.inference_mode():
        judged = Judge(references, encoders["clip"], dino).scores(image)
    guided = {term.role: term.encoder for term in GuidancePlan(1.0, 1.0, 0.1, dino_encoder=dino).terms()}
    assert list(judged) == list(ROLES) and guided == {"subject": "dino" if has_dino else "clip", "style": "clip"}
    for role, kind in guided.items():
        given = [references[role] if role == other else None for other in ROLES]
        assert judged[role] == getattr(fusion_score(image[None], {"encoder": encoders[kind]}, *given), role)


def test_a_comparison_embeds_its_references_once(encoders, references, monkeypatch):
    seen = {name: [] for name in encoders}
    for name, source in encoders.items():
        own = source.encoder.preprocess
        monkeypatch.setattr(
            source.encoder, "preprocess", lambda x, own=own, seen=seen[name]: (seen.append(len(x)), own(x))[1]
        )
    judge = Judge(references, encoders["clip"], encoders["dino"])
    assert seen == {"clip": [], "dino": []}
    for image in pictures(3):
        judge.scores(image)
    # Each picture by itself, and the two references of a role together with the first.
    assert seen == {"clip": [1, 2, 1, 1], "dino": [1, 2, 1, 1]}


def test_one_encoder_for_both_roles_sees_a_picture_once(encoders, references, monkeypatch):
    seen = []
    own = encoders["clip"].encoder.preprocess
    monkeypatch.setattr(encoders["clip"].encoder, "preprocess", lambda x: (seen.append(len(x)), own(x))[1])
    judge = Judge(references, encoders["clip"], None)
    for image in pictures(2):
        judge.scores(image)
    assert seen == [1, 2, 2, 1]


def test_references_that_cannot_be_used_are_named_before_sampling(encoders):
    with pytest.raises(ConductorError, match="^style_image: .*not numbers"):
        Judge({"subject": None, "style": torch.full((1, 8, 8, 3), float("nan"))}, encoders["clip"], None)
    assert Judge({"subject": None, "style": None}, None, None).scores(torch.zeros(8, 8, 3)) == {}
