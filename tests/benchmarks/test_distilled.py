"""The page of the distilled world: which rows it has, and that a small run writes what it measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.emoji import bench_distilled
from benchmarks.emoji.judging.verdicts import Verdicts
from benchmarks.emoji.methods.runs import Runs, Store
from benchmarks.emoji.tables import distilled
from benchmarks.emoji.world import splits
from benchmarks.emoji.world.kinds import BASE, DISTILLED
from benchmarks.emoji.world.small_world import SmallWorld

PAIR = ("fox", "openmoji")


def test_pictures_of_another_world_are_others(student_world: Path) -> None:
    row, store = distilled.rows()[0], Store(student_world / "pictures.jsonl")
    of_base, ours, fewer = (
        Runs(SmallWorld(student_world, kind), store, steps)
        for kind, steps in ((BASE, 0), (DISTILLED, 0), (DISTILLED, 4))
    )
    assert (of_base.sampling, of_base.cfg(row)) == ("16 Euler steps, CFG 2.5", 2.5)
    assert (ours.sampling, ours.cfg(row)) == ("16 Euler steps, CFG 1, embedded guidance 2.5", 1.0)
    assert len({runs.key(row, PAIR, 1) for runs in (of_base, ours, fewer)}) == 3


def test_leads_are_over_the_default() -> None:
    right, wrong = np.ones((2, 1)), np.zeros((2, 1))
    good = Verdicts(right, right, right, 0.5 * right, wrong, wrong, wrong)
    bad = Verdicts(right, wrong, wrong, wrong, right, wrong, wrong)
    lines = distilled.table({"stacked 1/1": bad, "recommended": good})[2:]
    assert lines[0] == "| `recommended` | 1.00 | 1.00 | 1.00 | **1.00** | 1.00-1.00 | 0.500 |  |"
    assert lines[1] == "| `stacked 1/1` | 1.00 | 0.00 | 0.00 | **0.00** | 0.00-0.00 | 0.000 | +1.00 (+1.00 to +1.00) |"


def test_a_small_run_writes_its_page(student_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = student_world
    monkeypatch.setattr(bench_distilled, "enter_host", lambda: None)  # this process has
    monkeypatch.setitem(splits.SPLIT_STYLES, "test", (PAIR[1],))
    every = distilled.rows()
    assert [row.method for row in every[:2]] == ["recommended", "0.7/0.7:recommended"]
    assert {row.label for row in every} >= set(distilled.SHOWN)
    monkeypatch.setattr(
        distilled, "rows", lambda: [row for row in every if row.label in ("recommended", "stacked 1/1")]
    )
    store = tmp_path / "pictures.jsonl"
    arguments = f"--world {tmp_path} --split test --subjects 1 --steps 3,2 --store {store} --docs {tmp_path}".split()
    bench_distilled.main(arguments)
    assert len(store.read_text(encoding="utf-8").splitlines()) == 4
    text = (tmp_path / "benchmarks" / "distilled.md").read_text(encoding="utf-8")
    assert 'make bench-distilled ARGS="--world FOLDER --steps 3,2 --subjects 1 --split test --seeds 1"' in text
    assert text.index("## 3 Euler steps, CFG 1, embedded guidance 2.5") < text.index("## 2 Euler steps")
    assert text.count("| `stacked 1/1` |") == text.count("| `recommended` |") == 2 and "rank 4, told" not in text
    assert (tmp_path / "images" / "distilled.jpg").stat().st_size > 500
    bench_distilled.main(arguments)  # all there: nothing is sampled
    assert len(store.read_text(encoding="utf-8").splitlines()) == 4
    with pytest.raises(ValueError, match="fewer steps than one"):
        bench_distilled.numbers("8,0")
