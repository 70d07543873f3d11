"""The small world's rendered styles: fixed, told apart by the judge, and with the subject still in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.emoji.judging.judge import Judge
from benchmarks.emoji.world.rendered_styles import RENDERED, SOURCE
from repo_paths import ASSETS

SUBJECTS = ("fox", "hamburger", "alien")


def drawing(subject: str) -> Tensor:
    with Image.open(ASSETS / "pictures" / f"reference_{subject}_{SOURCE}.png") as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("style", RENDERED)
def test_the_judge_knows_style_and_subject(style: str) -> None:
    pictures = torch.stack([RENDERED[style](drawing(subject)) for subject in SUBJECTS])
    assert pictures.shape == (3, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures[0], RENDERED[style](drawing(SUBJECTS[0])))
    assert Judge.load().score(pictures, list(SUBJECTS), style)["both"].all()


@pytest.mark.parametrize("style", RENDERED)
def test_the_ground_stays_white(style: str) -> None:
    assert (1 - RENDERED[style](torch.ones(3, 64, 64))).abs().max() < 1e-6
