"""What the page of the router is made of: files changed as people's differ, ways of deciding, and the tables."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from benchmarks.emoji import bench_router
from benchmarks.emoji.judging.verdicts import Verdicts
from benchmarks.emoji.methods import lora_alphas, lora_layers, lora_overlap
from benchmarks.emoji.methods.deciding import by_files, evened_once, levelled
from benchmarks.emoji.methods.policies import parse_method
from benchmarks.emoji.tables import router
from benchmarks.emoji.world import splits
from benchmarks.emoji.world.small_world import SmallWorld
from lora_conductor.fusion.layers import Pairing
from lora_conductor.fusion.policies import RECOMMENDED, StepContext
from lora_conductor.host.core import schedule_of
from lora_conductor.host.fusing import attachment_of, record_of_latent
from lora_conductor.host.loras import model_patches, read_lora
from repo_paths import ASSETS, REPO

SUBJECT, STYLE = (ASSETS / "loras" / f"lora_{name}.safetensors" for name in ("subject_fox", "style_openmoji"))
PAIR = ("fox", "openmoji")


@pytest.fixture(scope="module")
def small() -> SmallWorld:
    return SmallWorld()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lora_alphas, lora_layers, lora_overlap):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "loras")


def deltas(path: Path) -> dict[str, torch.Tensor]:
    """Dense, in float64, by kohya's or onetrainer's name of the layer."""
    weights = {key: value.double() for key, value in load_file(path).items()}
    found = {}
    for key in weights:
        layer, _, rest = key.partition(".")
        if rest == "alpha":
            up, down = weights[f"{layer}.lora_up.weight"], weights[f"{layer}.lora_down.weight"]
            found[layer] = up @ down * (weights[key] / len(down))
    return found


def log_ratios(small: SmallWorld, subject: Path, style: Path) -> dict[str, float]:
    """Of ``||dW||_F^2``, by segment, from the dense deltas."""
    dense = [deltas(path) for path in (subject, style)]
    names = attachment_of(parse_method("recommended")(small.model, subject, style)).spec.rules.prepared.pairings
    found = {}
    for name in names:
        layer, _, rows = name.removeprefix("diffusion_model.").partition("[")
        key = "lora_unet_" + layer.replace(".", "_")
        first, last = map(int, rows.rstrip("]").split(":")) if rows else (0, None)
        energies = [float(each[key][first:last].square().sum()) for each in dense]
        found[name] = math.log(energies[0] / energies[1])
    return found


def test_attention_only_leaves_the_rest_out(small: SmallWorld) -> None:
    path = lora_layers.attention_only(SUBJECT)
    whole, kept = deltas(SUBJECT), deltas(path)
    single = {name for name in whole if "single" in name and name.endswith("linear1")}
    assert len(kept) == sum("_attn_" in name for name in whole) + 3 * len(single) == 12 + 18
    for name, delta in kept.items():
        if "_attn_" in name and "single" not in name:
            torch.testing.assert_close(delta, whole[name])
    for name in single:
        block = name.split("_")[4]
        parts = [kept[f"lora_transformer_single_transformer_blocks_{block}_attn_to_{part}"] for part in "qkv"]
        torch.testing.assert_close(torch.cat(parts), whole[name][:768])
    patches = model_patches(read_lora(path.name, str(path)), small.model)
    assert not patches.unmatched and not patches.refused and len(patches.routed) == len(kept)


def test_uneven_alphas_are_all_that_changes() -> None:
    assert lora_alphas.uneven(SUBJECT, 1.0) == SUBJECT
    before, after = deltas(SUBJECT), deltas(lora_alphas.uneven(SUBJECT, 4.0))
    factors = [float(after[name].norm() / before[name].norm()) for name in before]
    for name, times in zip(before, factors, strict=True):
        torch.testing.assert_close(after[name], before[name] * times)
    assert 1 / 4 <= min(factors) < 1 / 2 and 2 < max(factors) <= 4


@given(st.text(), st.floats(1, 100))
def test_a_factor_is_within_its_bounds_and_turned_over_by_their_inverse(name: str, most: float) -> None:
    found = lora_alphas.factor(name, most)
    assert 1 / most - 1e-9 <= found <= most * (1 + 1e-9)
    assert lora_alphas.factor(name, 1 / most) == pytest.approx(1 / found)


def test_overlapping_files_have_a_third_in_common() -> None:
    third = lora_overlap.neighbour(SUBJECT)
    assert third.name == "lora_subject_frog.safetensors"  # of another rank
    last = lora_overlap.neighbour(ASSETS / "loras" / "lora_subject_tiger-face.safetensors")
    assert last.name == "lora_subject_alien.safetensors"
    assert lora_overlap.overlapping(SUBJECT, third, 0.0) == SUBJECT
    own, style, other = deltas(SUBJECT), deltas(STYLE), deltas(third)
    made = [deltas(lora_overlap.overlapping(path, third, 0.5)) for path in (SUBJECT, STYLE)]
    for name in own:
        torch.testing.assert_close(made[0][name], own[name] + other[name] / 2, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(made[1][name], style[name] + other[name] / 2, rtol=1e-5, atol=1e-9)

    def cosine(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
        a, b = (torch.cat([each[name].flatten() for name in own]) for each in (one, two))
        return float(torch.cosine_similarity(a, b, dim=0))

    assert abs(cosine(own, style)) < 0.02 and cosine(*made) > 0.05


@given(st.floats(-4, 4), st.floats(0.1, 2), st.floats(0.1, 2), st.floats(-20, 20), st.integers(0, 15), st.floats(-2, 2))
def test_by_files_is_recommended_with_the_files_own_ratio(
    loudness: float, subject: float, style: float, measured: float, step: int, lean: float
) -> None:
    policy, context = by_files()(), StepContext(step, 16, emphasis=2.5)
    pairing = Pairing((subject, style), loudness)
    found = policy.weights(torch.tensor(measured), lean, context, pairing)
    r = loudness - 1 + 4 * step / 16 - lean
    for weight, sign in zip(found, (-1, 1), strict=True):
        even = 2 / (1 + math.exp(-sign * r / 2))
        assert float(weight) == pytest.approx(1 + pairing.presence * (even - 1), rel=1e-5)
    assert policy.pair(torch.ones(1, 3), lean, context, pairing) is None
    assert policy.own_emphasis == RECOMMENDED.own_emphasis and policy.settings() != RECOMMENDED.settings()


def test_ways_that_do_not_measure_weigh_as_they_say(small: SmallWorld) -> None:
    """The weights that a run really had, against the dense files."""
    ways = router.ladder(0.4, 1.1)
    ratios = log_ratios(small, *(lora_alphas.uneven(path, 4.0) for path in (SUBJECT, STYLE)))
    middle = median(ratios.values())
    for way, ratio in (
        (ways[router.SCHEDULE], lambda name: 0.4),
        (ways[router.ONCE], lambda name: middle + 1.1),
        (ways[router.FILES], lambda name: ratios[name] + 1.1),
    ):
        model = parse_method(f"alpha 4/4:{way}")(small.model, SUBJECT, STYLE)
        record = record_of_latent(model, small.sample(model, *PAIR, [1], steps=1))
        pairings = attachment_of(model).spec.rules.prepared.pairings
        assert set(record.layers) == set(ratios)
        for i, name in enumerate(record.layers):
            r, there = ratio(name) - 1, pairings[name].presence
            for role, sign in ((0, -1), (1, 1)):
                expected = 1 + there * (2 / (1 + math.exp(-sign * r / 2)) - 1)
                assert float(record.weights[role, i, 0]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("layers", [0.0, -1.0])
def test_once_measured_is_the_mean_of_all_layers_at_the_step_before(small: SmallWorld, layers: float) -> None:
    model = evened_once(small.model, SUBJECT, STYLE, layers, measured=True)
    # Without guidance there is one prompt, whose scores are the record's.
    record = record_of_latent(model, small.sample(model, *PAIR, [1], steps=3, cfg=1.0))
    ratios = (record.scores[0] / record.scores[1]).log()
    assert len(record.layers) == 66 and not ratios.isnan().any()
    behind = schedule_of(small.model.get_model_object("model_sampling"))
    leads = [-1 + 4 * behind(sigma) for sigma in record.sigmas]
    for step in (1, 2):
        r = layers * ratios[:, step] + (1 - layers) * ratios[:, step - 1].mean() + leads[step]
        subject, style = ((2 * torch.sigmoid(x / 2)).clamp_max(1.0) for x in (-r, r))
        torch.testing.assert_close(record.weights[0, :, step], subject, rtol=5e-3, atol=1e-3)
        torch.testing.assert_close(record.weights[1, :, step], style, rtol=5e-3, atol=1e-3)


def test_levelled_has_the_files_layers_and_the_measured_mean(small: SmallWorld) -> None:
    files = [lora_alphas.uneven(path, 4.0) for path in (SUBJECT, STYLE)]
    model, told = levelled(small.model, *files, lean=0.3), log_ratios(small, *files)
    record = record_of_latent(model, small.sample(model, *PAIR, [1], steps=3, cfg=1.0))
    ratios = (record.scores[0] / record.scores[1]).log()
    pairings = attachment_of(model).spec.rules.prepared.pairings
    behind = schedule_of(small.model.get_model_object("model_sampling"))
    for step in (1, 2):
        level = float(ratios[:, step - 1].mean()) - mean(told.values())
        for i, name in enumerate(record.layers):
            r, there = told[name] + level - 1 + 4 * behind(record.sigmas[step]) - 0.3, pairings[name].presence
            for role, sign in ((0, -1), (1, 1)):
                even = min(1.0, 2 / (1 + math.exp(-sign * r / 2)))
                assert float(record.weights[role, i, step]) == pytest.approx(1 + there * (even - 1), rel=5e-3, abs=1e-3)


def test_k_lora_on_attention_leaves_both_elsewhere(small: SmallWorld) -> None:
    """Of a FLUX: an MLP gets both, queries and keys of either kind of block one of them."""
    model = parse_method("k_lora_on_attention(variant=s)")(small.model, SUBJECT, STYLE)
    record = record_of_latent(model, small.sample(model, *PAIR, [1], steps=4))
    for i, name in enumerate(record.layers):
        chosen = {tuple(pair) for pair in record.weights[:, i].T.tolist()}
        single = re.search(r"single_blocks\.\d+\.linear1\[(\d+):", name)
        attention = int(single[1]) < 768 if single else "attn" in name
        assert chosen <= ({(1.0, 0.0), (0.0, 1.0)} if attention else {(1.0, 1.0)}), name
    assert any("linear1[768" in name for name in record.layers) and any("_attn" in name for name in record.layers)


def test_evened_once_goes_from_one_number_to_every_layer(small: SmallWorld) -> None:
    spec = attachment_of(evened_once(small.model, SUBJECT, STYLE, -1.0)).spec
    middle = median(log_ratios(small, SUBJECT, STYLE).values())
    assert (spec.policy.evenness, spec.refinement.lean) == (-1.0, pytest.approx(-2 * middle, rel=1e-4))
    ratio, context = middle + 0.7, StepContext(4, 16, emphasis=2.5)
    subject, style = spec.policy.weights(torch.tensor(ratio), spec.refinement.lean, context)
    assert 2 * math.log(float(style / subject)) == pytest.approx(middle - 0.7, abs=1e-4)  # r, where b is 0
    for measured in (False, True):
        whole = attachment_of(evened_once(small.model, SUBJECT, STYLE, 1.0, measured=measured)).spec
        assert (whole.policy, whole.refinement.lean, whole.refinement.even_out) == (RECOMMENDED, 0.0, 0.0)


def test_levels_are_those_of_a_run_and_of_its_files(small: SmallWorld) -> None:
    level, beyond = bench_router.levels(small, [PAIR], 1)
    model = parse_method("recommended")(small.model, SUBJECT, STYLE)
    record = record_of_latent(model, small.sample(model, *PAIR, [1]))
    assert level == pytest.approx(float((record.scores[0] / record.scores[1]).log().mean()), abs=1e-6)
    assert level - beyond == pytest.approx(median(log_ratios(small, SUBJECT, STYLE).values()), abs=1e-3)


def test_a_third_below_is_core_s_own_patch(small: SmallWorld) -> None:
    model = parse_method("below .5:recommended")(small.model, SUBJECT, STYLE)
    assert len(model.patches) >= 36 and attachment_of(model).spec.shared_layers == 36
    assert not parse_method("recommended")(small.model, SUBJECT, STYLE).patches


def test_every_row_can_be_read() -> None:
    for split in bench_router.SPLITS:
        rows = bench_router.rows(split, router.ladder(0.4, 1.1))
        assert len({entry.label for entry in rows}) == len({entry.method for entry in rows}) == len(rows)
        for entry in rows:
            parse_method(entry.method)
    for text in ("evened_twice", "by_files(much=1", "layers most/all:recommended("):
        with pytest.raises(ValueError, match="unknown policy"):
            parse_method(text)


def verdicts(subject: list[int], style: list[int], p: float) -> Verdicts:
    right = np.array([subject, style], dtype=float)[:, :, None]
    both = right.prod(0)
    return Verdicts(*right, both, both * 0 + p, both, both, both)


def rows_of(lines: list[str]) -> list[tuple[str, ...]]:
    return [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines if line.startswith("| ")]


def test_tables_tell_what_leads_and_how_surely() -> None:
    ways, files = [router.ONCE, router.MEASURED, router.FILES], ["as shipped", "loud 2/1"]
    half, whole = verdicts([1, 0] * 20, [1, 1] * 20, 0.2), verdicts([1, 1] * 20, [1, 1] * 20, 0.3)
    found = {router.label(way, each): half for way in ways for each in files}
    found[router.label(router.MEASURED, "loud 2/1")] = whole
    compared = [(router.MEASURED, router.ONCE), (router.FILES, router.ONCE), (router.ONCE, router.MEASURED)]
    lines = router.tables(found, ways, compared, files)
    of_files = {name: [row[1:] for row in rows_of(lines) if row[0] == name] for name in (*files, "mean", "files")}
    means, leads, ps, gains = of_files["loud 2/1"]
    assert means[0].startswith("0.67 (0.5") and means[1] == "1.00 (1.00-1.00)"
    assert re.fullmatch(r"\*\*\+0\.33 \(\+0\.2\d to \+0\.4\d\)\*\*", leads[0])
    assert leads[1] == "+0.00 (+0.00 to +0.00)" and leads[2].startswith("**-0.33 (")
    assert ps == ("0.200", "0.300", "0.200")
    assert gains == ("+0.100 +- 0.000", "+0.000 +- 0.000", "-0.100 +- 0.000")
    means, leads, ps, gains = of_files["mean"]
    assert means == ("0.67", "0.83", "0.67") and leads[0].startswith("**+0.17 (") and ps[1] == "0.250"
    assert gains[0] == "+0.050 +- 0.000"
    assert set(of_files["as shipped"][1]) == {"+0.00 (+0.00 to +0.00)"}
    assert of_files["files"][1][0] == "by layer, measured, over once, files" and "6 comparisons" in "\n".join(lines)


def test_a_lead_that_chance_explains_is_not_bold() -> None:
    once, other = verdicts([1, 0] * 6, [1] * 12, 0.2), verdicts([1, 0] * 5 + [1, 1], [1] * 12, 0.2)
    found = {router.label(router.ONCE, "as shipped"): once, router.label(router.MEASURED, "as shipped"): other}
    value, drawn = router.lead(found, router.MEASURED, router.ONCE, ["as shipped"])
    assert value == pytest.approx(other.hmean - once.hmean) and drawn.min() == 0 < drawn.max()
    lines = router.tables(found, [router.ONCE, router.MEASURED], [(router.MEASURED, router.ONCE)], ["as shipped"])
    assert "**" not in "".join(line for line in lines if line.startswith("| "))


def test_the_command_writes_the_page_and_keeps_words_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_router, "enter_host", lambda: None)  # this process has
    monkeypatch.setattr(bench_router, "levels", lambda small, pairs, seed: (0.4, 1.1))
    for split in bench_router.SPLITS:
        monkeypatch.setitem(splits.SPLIT_STYLES, split, splits.STYLES)
    monkeypatch.setitem(splits.SUBJECTS, "test", PAIR[:1])
    two = (router.ONCE, router.MEASURED)
    for name, value in {
        "ladder": lambda level, beyond: {router.ONCE: f"evened_once(lean={-beyond})", router.MEASURED: "recommended"},
        "FINER": {},
        "PROMPTS": {},
        "OVER": (two[::-1],),
        "TRIED": (),
        "TRIED_ON": ("as shipped",),
        "FILES_OF": {"as shipped": "", "overlapping": "shared .5/.5:"},
    }.items():
        monkeypatch.setattr(router, name, value)
    page, store = tmp_path / "benchmarks" / "router.md", tmp_path / "pictures.jsonl"
    page.parent.mkdir()
    page.write_text("<!-- below: by hand, kept -->\n\nMine.\n", encoding="utf-8")
    bench_router.main(f"--subjects 1 --docs {tmp_path} --store {store}".split())
    text = page.read_text(encoding="utf-8")
    assert text.endswith("\n\nMine.\n") and 'make bench-router ARGS="--subjects 1"' in text
    assert "2 pairs (fox; each in openmoji, fluent-emoji-high-contrast), seeds 500 to 500." in text
    assert "2 pairs (penguin; " in text and "of +0.40, +1.10 more than the files" in text
    assert "they would be +0.40 and +1.10." in text
    assert text.count("| overlapping |") == 4
    assert len(store.read_text(encoding="utf-8").splitlines()) == 2 * (2 + 4)
    for split in bench_router.SPLITS:
        bench_router.main(f"--only {split} --subjects 1 --docs {tmp_path / 'none'} --store {store}".split())
        assert capsys.readouterr().out.count("| as shipped |") == 4
    assert not (tmp_path / "none").exists()


def test_its_page_was_made_by_its_command() -> None:
    text = (REPO / "docs" / "benchmarks" / "router.md").read_text(encoding="utf-8")
    for files in router.FILES_OF:
        assert text.count(f"| {files} |") == (8 if files in router.TRIED_ON else 4)
    for way in (*router.ladder(0, 0), *router.FINER, *router.PROMPTS):
        assert f" {way} |" in text
