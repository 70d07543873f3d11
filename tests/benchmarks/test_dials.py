"""The page of strengths: what is sampled for it, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.emoji import bench_dials
from benchmarks.emoji.judging.verdicts import Verdicts
from benchmarks.emoji.methods.lora_loudness import louder
from benchmarks.emoji.tables import dials
from benchmarks.emoji.world.kinds import BASE, DISTILLED
from repo_paths import ASSETS


def test_what_is_sampled() -> None:
    methods = [entry.method for entry in dials.turned("recommended", "style")]
    assert methods[0] == dials.without("style").method == "core:1/0"
    assert methods[1:] == [f"1/{s:g}:recommended" for s in dials.DIAL[1:]]
    assert dials.turned("sum", "subject")[0].method == dials.without("subject").method == "core:0/1"
    every = [entry.method for entry in dials.entries()]
    assert len(every) == len(set(every)) == 2 + 2 * (2 * len(dials.DIAL[1:]) - 1)
    few = bench_dials.strengths(".5,2")
    assert few == (0, 0.5, 1, 2)
    assert [entry.method for entry in dials.turned("sum", "style", few)] == [
        "core:1/0",
        "1/0.5:sum",
        "1/1:sum",
        "1/2:sum",
    ]
    assert len(dials.entries(few)) == 2 + 2 * 5
    with pytest.raises(ValueError, match="below 0"):
        bench_dials.strengths("-1,1")


def test_a_louder_file_does_so_many_times_as_much() -> None:
    path = ASSETS / "loras" / "lora_style_openmoji.safetensors"
    assert louder(path, 1.0) == path
    plain, loud = load_file(path), load_file(louder(path, 2.0))
    assert plain.keys() == loud.keys()
    for key, value in plain.items():
        torch.testing.assert_close(loud[key], value * (2 if "lora_up" in key else 1))


def test_the_page(tmp_path: Path) -> None:
    points = {
        (method, role): [dials.Point(s / 10, 0.5, s / 4, 0.25) for s in dials.DIAL]
        for method in dials.METHODS
        for role in dials.ROLES
    }
    right = Verdicts(*(np.ones((2, 1)) for _ in range(7)))
    verdicts = {entry.label: right for entry in dials.loud()}
    pairs = [("fox", "openmoji"), ("cat", "openmoji")]
    page = dials.write(points, verdicts, "make bench-dials", BASE.sampling(16), pairs, [5], tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "2 pairs (fox, cat; each in openmoji), seeds 5 to 5" in text
    assert "| 1.5 | 0.150 | 0.50 | 0.38 | 0.25 |" in text and "| `sum` | 1.00 | 1.00 | 1.00 |" in text
    assert "16 Euler steps, CFG 2.5: one tiny" in text
    assert (tmp_path / dials.PLOT).stat().st_size > 1000

    some = {key: row[::6] for key, row in points.items()}  # strengths 0 and 2
    other = dials.write(
        some, verdicts, "make", DISTILLED.sampling(4), pairs, [5], tmp_path, dials.DIAL[::6], DISTILLED.suffix
    )
    assert other.name == "dials-distilled.md" and page.read_text(encoding="utf-8") == text
    said = other.read_text(encoding="utf-8")
    assert "4 Euler steps, CFG 1, embedded guidance 2.5" in said and "images/dials-distilled.png" in said
    assert "| 2 | 0.200 |" in said and "| 1 | 0.100 |" not in said
    assert (tmp_path / "images" / "dials-distilled.png").stat().st_size > 1000
