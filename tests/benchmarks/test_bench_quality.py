"""The quality benchmark in the small: cut runs go on, figures are what they are called, words by hand are kept."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.emoji import bench_quality
from benchmarks.emoji.judging import verdicts
from benchmarks.emoji.judging.evaluation import Result
from benchmarks.emoji.methods import runs as sampled_runs
from benchmarks.emoji.methods.policies import parse_method
from benchmarks.emoji.methods.runs import Entry, Runs, Store
from benchmarks.emoji.tables import quality_doc, quality_rows
from benchmarks.emoji.tables.policies import compared
from benchmarks.emoji.world import splits
from benchmarks.emoji.world.small_world import SmallWorld
from benchmarks.guidance_defaults import guidance_defaults

ROWS = [Entry("recommended", "recommended", kind="ours"), Entry("stacked 1/1", "core:1/1")]
PAIR = ("fox", "openmoji")
SEEDS = [1, 2]
STEPS = 2


@pytest.fixture(scope="module")
def small() -> SmallWorld:
    return SmallWorld()


def sampled(runs: Runs, rows: list[Entry] = ROWS) -> int:
    """How many pictures had to be made."""
    made: list[int] = []
    runs.sample(rows, [PAIR], SEEDS, made.append)
    return sum(made)


def test_a_run_that_was_cut_goes_on(small: SmallWorld, tmp_path: Path) -> None:
    path = tmp_path / "pictures.jsonl"
    whole = Runs(small, Store(path), STEPS)
    assert sampled(whole) == 4
    before = [whole.pictures(row, PAIR, SEEDS) for row in ROWS]
    lines = path.read_text(encoding="utf-8").splitlines()

    path.write_text("\n".join([*lines[:3], lines[3][:200]]), encoding="utf-8")  # killed while it wrote
    again = Runs(small, Store(path), STEPS)
    assert sampled(again) == 1
    assert path.read_text(encoding="utf-8").splitlines()[:3] == lines[:3]
    for row, pictures in zip(ROWS, before, strict=True):
        assert (again.pictures(row, PAIR, SEEDS) - pictures).abs().max() < 1.5 / 255

    assert sampled(Runs(small, Store(path), STEPS)) == 0
    other = [Entry("paper", "paper"), Entry("recommended", "recommended", cfg=4.0)]
    assert sampled(Runs(small, Store(path), STEPS), other) == 4
    assert sampled(Runs(small, Store(path), STEPS + 1), ROWS[1:]) == 2


def test_guided_pictures_are_made_anew_when_the_node_s_defaults_change(
    small: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(small, Store(tmp_path / "pictures.jsonl"), STEPS)
    rows = ROWS[0], Entry("guided", "recommended", guidance="x0")
    plain, guided = (runs.key(row, PAIR, 1) for row in rows)
    assert guidance_defaults().keys() >= {"strength", "start", "end", "every"}
    changed = guidance_defaults() | {"start": 0.123}
    monkeypatch.setattr(sampled_runs, "guidance_defaults", lambda: changed)
    assert (runs.key(rows[0], PAIR, 1), plain != guided) == (plain, True)
    assert runs.key(rows[1], PAIR, 1) != guided


def test_the_command_ends_with_a_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_quality, "enter_host", lambda: None)  # this process has
    monkeypatch.setitem(splits.SPLIT_STYLES, "test", (PAIR[1],))
    monkeypatch.setattr(quality_rows, "quick", lambda: ROWS)
    store = tmp_path / "pictures.jsonl"
    bench_quality.main(f"--quick --subjects 1 --seeds 2 --steps 3 --store {store} --docs {tmp_path}".split())
    policies = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]
    assert set(policies) == {"recommended", "stacked 1/1"}
    for figures in policies.values():
        assert set(figures) == {"subject", "style", "both", "hmean", "ci"}
        low, high = figures["ci"]
        assert 0 <= low <= figures["hmean"] <= high <= 1
    assert len(store.read_text(encoding="utf-8").splitlines()) == 4
    chosen = f"--row craft --split test --subjects 1 --seeds 1 --steps 2 --store {store} --docs {tmp_path}".split()
    bench_quality.main(chosen)
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]) == {"recommended", "craft"}
    with pytest.raises(SystemExit, match="no row krafft: there are recommended, stacked 1/1"):
        bench_quality.main(["--row", "krafft", *chosen[2:]])
    assert not (tmp_path / "benchmarks").exists()


def test_the_stack_is_tuned_only_where_all_its_files_are(small: SmallWorld) -> None:
    assert bench_quality.has_loras(small, "fresh") and bench_quality.has_loras(small, "test")
    assert not bench_quality.has_loras(small, "tune")  # not shipped


def test_stacking_is_tuned_each_way_by_itself(small: SmallWorld) -> None:
    grids = quality_rows.grid(small.kind.cfg)
    rates = {row.label: i for i, row in enumerate(chain(*grids))}
    found = {label: made_up([[i / 100]], [[1]]) for label, i in rates.items()}
    found[quality_rows.stacked(0.7, 1.3).label] = made_up([[1]], [[1]])
    assert quality_rows.best(grids, found) == (quality_rows.stacked(0.7, 1.3), quality_rows.positive(1.3, 2))
    assert [len(rows) for rows in grids] == [len(quality_rows.GRID)] * 2
    assert quality_rows.grid(1.0) == grids[:1]  # without a negative prompt both ways are one
    both, alone = quality_rows.grid(6.0)  # strong guidance multiplies what the positive prompt has alone
    assert both == grids[0] and alone[: len(both)] == grids[1] and alone[len(both) :]


def test_every_row_of_the_quality_table_can_be_made(small: SmallWorld) -> None:
    """Each is parsed; those that are tried on twice as loud a file are so by the file, not by a strength."""
    rows = quality_rows.headline(quality_rows.TUNED, guided=True)
    assert len({row.label for row in rows}) == len(rows)
    for row in rows:
        assert row.method == "ssr_merge" or callable(parse_method(row.method))
    for _, (plain, *louder) in quality_rows.doubled(quality_rows.TUNED):
        assert [row.method for row in louder] == [f"loud 2/1:{plain.method}", f"loud 1/2:{plain.method}"]


def test_stacking_on_the_positive_prompt_is_core_s_hooks(small: SmallWorld) -> None:
    """The row's pictures are those of core's *Create Hook LoRA* on the positive conditioning."""
    import comfy.hooks
    import comfy.sample
    import comfy.utils

    subject, style = (small.lora(role, name) for role, name in zip(("subject", "style"), PAIR, strict=True))
    hooks = comfy.hooks.HookGroup()
    for path, strength in ((subject, 1.0), (style, 1.5)):
        weights = comfy.utils.load_torch_file(str(path), safe_load=True)
        hooks = hooks.clone_and_combine(comfy.hooks.create_hook_lora(weights, strength, 0.0))
    hooked = comfy.hooks.set_hooks_for_conditioning(small.prompt(*PAIR), hooks)
    ours = parse_method(quality_rows.positive(1, 1.5).method)(small.model, subject, style)
    noise, empty = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 16, 8, 8)

    def picture(model: object, positive: list[list[object]]) -> torch.Tensor:
        prompts = positive, small.conditioning(["<null>"] * 4)
        settings = STEPS, small.kind.cfg, "euler", "simple"
        return comfy.sample.sample(model, noise, *settings, *prompts, empty, disable_pbar=True, seed=0)

    with torch.inference_mode():
        one, other = picture(ours, small.prompt(*PAIR)), picture(small.model, hooked)
        without = picture(small.model, small.prompt(*PAIR))
    assert (one - other).abs().max() < 1e-3 * (other - without).abs().max()


def made_up(subject: list[list[float]], style: list[list[float]]) -> verdicts.Verdicts:
    subjects, styles = np.array(subject, float), np.array(style, float)
    both, nothing = subjects * styles, np.full(subjects.shape, np.nan)
    return verdicts.Verdicts(subjects, styles, both, 0.5 * both, 1 - subjects, 1 - styles, nothing)


def test_figures_of_two_pairs_by_hand() -> None:
    """Two pairs drawn with replacement: both the first, one of each, both the second; 1/4, 1/2, 1/4."""
    v = made_up([[1, 1], [1, 0]], [[1, 1], [0, 1]])
    assert v.hmean == pytest.approx(0.75) and v.rate("both") == pytest.approx(0.5)
    values, counts = np.unique(v.replicates().round(6), return_counts=True)
    assert values == pytest.approx([0.5, 0.75, 1.0])
    assert counts / verdicts.REPLICATES == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert v.interval() == pytest.approx((0.5, 1.0))
    assert made_up([[1, 1]], [[0, 0]]).hmean == 0

    worse = made_up([[1, 0], [0, 0]], [[1, 1], [0, 1]])  # right in .25 and .75
    gain, (low, high) = verdicts.difference(v, worse)
    assert gain == pytest.approx(0.75 - 2 * 0.25 * 0.75)
    assert low == pytest.approx(1 - 2 * 0.5 / 1.5) and high == pytest.approx(0.5)
    # One subject's pairs are drawn together: there is nothing to vary.
    assert verdicts.difference(v, worse, ["fox", "fox"]) == (pytest.approx(gain), pytest.approx((gain, gain)))
    # both: (1, 0) against (.5, 0): p is half of it.
    assert v.gain(worse) == pytest.approx((0.125, 0.125))


def test_leads_are_of_the_same_pairs_drawn() -> None:
    def result(subject: list[int], style: list[int]) -> Result:
        values = {"subject_ok": torch.tensor(subject, dtype=torch.bool), "style_ok": torch.tensor(style)}
        return Result(torch.zeros(6, 3, 64, 64), values, 1.0)

    # Three pairs, two seeds. The second method fails where the first does, and once in each other pair.
    results = {"a": result([1, 1, 1, 1, 0, 0], [1] * 6), "b": result([1, 0, 1, 0, 0, 0], [1] * 6)}
    _, first, second = compared(results, seeds=2)
    assert first.split() == ["a", "0.80", "0.00", "to", "1.00", "|", "+0.00,", "0.00", "to", "0.00"]
    # The lead is 4/5 - 1/2; its ends are the draws of the third pair alone (0 - 0)
    # and of the other two alone (1 - 2/3).
    assert second.split()[:2] == ["b", "0.50"] and "| +0.30, 0.00 to 0.33" in second


def test_the_document_says_what_was_measured_and_keeps_what_was_written(tmp_path: Path) -> None:
    good, bad = made_up([[1, 1], [1, 0]], [[1, 1], [1, 1]]), made_up([[1, 0], [1, 1]], [[0, 0], [0, 1]])
    rows = [*ROWS, quality_rows.stacked(1, 1.5)]
    plain, twice, tuned = (quality_rows.stacked(*s) for s in ((1, 1), (2, 1), (1, 1.5)))
    lost = made_up([[1, 0], [1, 1]], [[0, 0], [0, 0]])
    found = {"recommended": good, plain.label: bad, rows[2].label: bad, twice.label: lost}
    doubled = [("recommended", [rows[0]] * 3), (plain.label, [plain, twice, plain])]
    q = quality_doc.Quality(
        "make it", "7 steps", "test", [PAIR, ("alien", "openmoji")], SEEDS, rows, doubled, found, good, [tuned],
        {plain.label: bad}, SEEDS,
    )  # fmt: skip
    columns = {row.label: torch.rand(2, 3, 64, 64) for row in rows}
    path = quality_doc.write_all(q, columns, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "| **`recommended`** | 0.75 | 1.00 | 0.75 | **0.86** |" in text
    assert "loses 0.00 of its harmonic mean, `stacked 1/1` 0.38: less than half." in text
    assert "4 pictures a row; 7 steps, strengths 1/1" in text
    assert "clear of zero" in text and "| alien | openmoji | 0.50 |" in text
    assert [line.split("`")[1] for line in quality_doc.table(q)[2:4]] == ["recommended", "stacked 1/1"]
    for image in ("quality.png", "quality_sheet.jpg"):
        assert Image.open(tmp_path / "images" / image).width > 150

    path.write_text(text + "\n## Looked at\n\nFoxes.\n", encoding="utf-8")
    again = quality_doc.write_all(q, columns, tmp_path).read_text(encoding="utf-8")
    assert again == text + "\n## Looked at\n\nFoxes.\n"
