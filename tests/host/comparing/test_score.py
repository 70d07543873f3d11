"""Pictures scored against references: the grid's Judge and Fusion Score, by the same encoders."""

import pytest
import torch

from lora_conductor.guidance.burn import VISIBLE, burn_of
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


def rows(table):
    return [[float(value) for value in line.split("|")[2:-1]] for line in table.splitlines()[2:]]


def test_burn_beside_the_scores(encoders, references):
    """Plain figures without an anchor, ratios against one for all or one each; the means below."""
    images, anchors = pictures(3), 0.2 + 0.6 * torch.cat([tiny_encoders.smooth_picture(20 + i) for i in range(3)])

    def burn(style_alone):
        with torch.inference_mode():
            given = {"encoder": encoders["dino"]}
            return fusion_score(images, given, references["subject"], None, style_alone=style_alone).burn

    own, theirs = ({k: v.tolist() for k, v in burn_of(p.movedim(-1, 1)).items()} for p in (images, anchors))
    plain, one, each = (rows(burn(anchor)) for anchor in (None, anchors[:1], anchors))
    assert len(plain) == len(one) == len(each) == 4
    for column, (figure, least) in enumerate(VISIBLE.items()):
        for index in range(3):
            mine = own[figure][index]
            assert plain[index][column] == pytest.approx(mine, abs=0.051 if mine > 1 else 6e-4)
            assert one[index][column] == pytest.approx((mine + least) / (theirs[figure][0] + least), abs=0.0051)
            assert each[index][column] == pytest.approx((mine + least) / (theirs[figure][index] + least), abs=0.0051)
        for table in (one, each):
            assert table[3][column] == pytest.approx(sum(row[column] for row in table[:3]) / 3, abs=0.011)
    for bad in (anchors[:2], anchors[:, ::2]):
        with pytest.raises(ConductorError, match="^style_alone: . pictures of .* cannot be held against 3 of"):
            burn(bad)
