"""The second judge and the tables of burn, on pictures that are known."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.emoji.judging.outsider import Outsider
from benchmarks.emoji.tables import burn
from benchmarks.emoji.world.pictures import Pictures

SUBJECTS, STYLES = ["disc", "bar", "ring"], ["plain", "inverted", "red"]


def drawn(subject: str, style: str, shift: int = 0) -> torch.Tensor:
    """[3, 64, 64] in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 32 - shift, indexing="ij")
    far = (x**2 + y**2).float().sqrt()
    ink = {"disc": far < 20, "bar": (x.abs() < 6) & (y.abs() < 26), "ring": (far < 26) & (far > 18)}[subject].float()
    black = (1 - ink).expand(3, -1, -1)
    return {"plain": black, "inverted": 1 - black, "red": torch.stack([torch.ones(64, 64), 1 - ink, 1 - ink])}[style]


@pytest.fixture(scope="module")
def outsider() -> Outsider:
    pairs = [(i, j) for i in range(3) for j in range(3)]
    images = torch.stack([drawn(SUBJECTS[i], STYLES[j]) for i, j in pairs])
    subject, style = (torch.tensor([pair[k] for pair in pairs]) for k in range(2))
    return Outsider(Pictures((images * 255).byte(), subject, style, SUBJECTS, STYLES, SUBJECTS, STYLES[1:]))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_it_names_what_it_sees(outsider: Outsider, subject: str, style: str) -> None:
    """A drawing that is moved by two pixels, judged as each pair."""
    moved = drawn(subject, style, shift=2)[None]
    for other in SUBJECTS:
        for look in STYLES:
            seen = outsider.see(moved, (other, look))
            if look == style:
                assert bool(seen.subject) == (other == subject)
            if other == subject:
                assert bool(seen.style) == (look == style)
    own = outsider.see(torch.stack([drawn(subject, style), moved[0]]), (subject, style))
    assert own.distance[0].abs() < 1e-5 < own.distance[1] and own.colour[0] < 1e-3 < own.colour[1]


def test_colour_is_cie76(outsider: Outsider) -> None:
    """White against black is 100 apart, in the share of the pixels that differ."""
    white = torch.ones(1, 3, 64, 64)
    share = float(1 - drawn("bar", "plain")[0].mean())
    assert float(outsider.see(white, ("bar", "plain")).colour) == pytest.approx(100 * share, rel=1e-3)


def test_the_tables(outsider: Outsider) -> None:
    pairs = [("disc", "red"), ("ring", "red")]
    truth = {pair: drawn(*pair)[None] for pair in pairs}
    true = [truth[pair].expand(2, -1, -1, -1) for pair in pairs]
    grey = [0.5 + (batch - 0.5) / 2 for batch in true]
    found = {"ours": burn.of_pictures(true, true, truth, outsider, pairs)}
    found["grey"] = burn.of_pictures(grey, true, truth, outsider, pairs)
    text = "\n\n".join(burn.sections(found, "ours"))
    first, second = re.findall(r"^\| (?:ours|grey) \| ([\d. |]+) \|$", text, re.M)[:2]
    assert set(first.split(" | ")) == {"1.00"}
    contrast, gradient = (float(second.split(" | ")[i]) for i in (4, 6))
    assert contrast == pytest.approx(0.5, abs=0.02) and gradient == pytest.approx(0.25, abs=0.02)
    assert re.search(
        r"^\| ours \| 1\.00 \| 1\.00 \| 1\.00 \| 1\.00 \(1\.00-1\.00\) \|  \| 0\.000 \| 0\.0 \|$", text, re.M
    )
