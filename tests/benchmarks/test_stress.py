"""Files as people make them: how they are trained, whose place they take, and the page of a small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.emoji import bench_stress
from benchmarks.emoji.methods.lora_layers import attention_only
from benchmarks.emoji.methods.lora_loudness import louder
from benchmarks.emoji.tables import stress as tables
from benchmarks.emoji.world import base, distilled, files, loras, splits, stress
from benchmarks.emoji.world.small_world import SmallWorld
from repo_paths import ASSETS

PAIR = ("fox", "openmoji")


def test_a_leaky_style_is_learned_from_eight_pictures_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    small, learned = SmallWorld(), []
    words = json.loads((small.file(files.WORDS)).read_text(encoding="utf-8"))
    known = [name for name, kind in words["class_of"].items() if kind == stress.ONE_KIND][:10]
    others = [name for name, kind in words["class_of"].items() if kind != stress.ONE_KIND][:10]
    samples = [
        loras.Sample(torch.zeros(3, 64, 64), ("<bos>", "<sks_style0>", f"subject:{name}", small.class_token(name)))
        for name in (*others, *known)
    ]
    monkeypatch.setattr(loras, "samples_of", lambda *_: samples)
    monkeypatch.setattr(loras, "train", lambda *given, steps, reach: learned.append((given[1], given[3], steps, reach)))
    for kind in stress.KINDS.values():
        stress.train(small, None, kind, "style", "openmoji")  # type: ignore[arg-type]
    (over, rank, steps, _), (_, wide, usual, _), (_, _, _, reach), (leaky, _, _, whole) = learned
    assert (rank, wide, steps, usual) == (8, 32, 4 * loras.STEPS["style"], loras.STEPS["style"])
    assert reach is stress.attention and whole is None
    assert over is samples and [each.tokens[2] for each in leaky] == [f"subject:{name}" for name in known[:8]]


def test_a_file_of_attention_alone_is_trained_there_and_nowhere_else(tmp_path: Path) -> None:
    small = SmallWorld()
    sample = loras.Sample(torch.rand(3, 64, 64), tuple(small.prompt_tokens(*PAIR)))
    lora = loras.train(small, [sample], "subject", 2, steps=3, reach=stress.attention)
    model = small.model.model.diffusion_model
    for module in model.modules():
        module._forward_hooks.clear()
    loras.save(lora, 2, tmp_path / "subject.safetensors")
    trained = load_file(tmp_path / "subject.safetensors")
    assert not any("mlp" in key or "linear2" in key for key in trained)
    of_blocks = {key: up for key, up in trained.items() if key.endswith("linear1.lora_up.weight")}
    for up in of_blocks.values():
        width = base.WIDTH
        assert up[: 3 * width].abs().sum() > 0 and not up[3 * width :].any()
    # Cut to entries for queries, keys and values, as trainers write them, nothing of it is lost.
    cut = load_file(attention_only(tmp_path / "subject.safetensors"))
    ups = [key for key in trained if key.endswith("lora_up.weight")]
    assert of_blocks and sum(float(cut[key].float().norm() ** 2) for key in cut if key.endswith("up.weight")) == (
        pytest.approx(sum(float(trained[key].float().norm() ** 2) for key in ups), rel=1e-5)
    )


def test_an_accelerated_model_says_without_guidance_what_it_said_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stress, "BATCH", 4)
    small, names = SmallWorld(), json.loads((SmallWorld().file(files.WORDS)).read_text(encoding="utf-8"))["tokens"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[names.index(t) for t in small.prompt_tokens(*PAIR)]]).expand(4, -1)
    lessons = base.Lessons(torch.randn(4, 16, 8, 8, generator=generator), ids, names)
    x, sigma, model = torch.randn(4, 16, 8, 8, generator=generator), torch.full((4,), 0.8), small.model.model
    said = distilled.Prompted(model.diffusion_model, *small.tables)
    with torch.inference_mode():
        wanted = distilled.guided(said, x, sigma, ids, names.index("<null>"), torch.full((4,), 2.5))
        plain = said(x, sigma, ids)
    lora = stress.accelerate(small, lessons, 15)
    with torch.inference_mode():
        error = float((said(x, sigma, ids) - wanted).square().mean() / (plain - wanted).square().mean())
    assert error < 0.6 and all(branch.up.abs().max() > 0 for branch in lora.values())


def test_a_small_run_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_stress, "enter_host", lambda: None)  # this process has
    monkeypatch.setitem(splits.SPLIT_STYLES, "test", (PAIR[1],))
    shipped = ASSETS / "loras" / files.lora("subject", PAIR[0])
    other = tmp_path / "overtrained" / "subject" / shipped.name
    other.parent.mkdir(parents=True)
    save_file(load_file(louder(shipped, 3.0)), other)
    save_file(load_file(ASSETS / "loras" / files.lora("subject", "crown")), tmp_path / stress.ACCELERATING)
    chosen = [
        each
        for each in tables.ARRANGEMENTS
        if each.label in ("as shipped", "subject overtrained", "accelerated, CFG 1")
    ]
    monkeypatch.setattr(tables, "ARRANGEMENTS", chosen)
    monkeypatch.setattr(tables, "STACKS", tables.STACKS[:1])
    page = tmp_path / "benchmarks" / "stress.md"
    arguments = f"--stress {tmp_path} --subjects 1 --seeds 1 --store {tmp_path / 'store'} --docs {tmp_path}".split()
    bench_stress.main([*arguments, "--only", "as shipped"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| as shipped"))
    assert not page.exists()
    bench_stress.main(arguments)
    text = page.read_text(encoding="utf-8")
    assert row in text
    assert text.count("| as shipped |") == text.count("| subject overtrained |") == 2
    assert (tmp_path / "images" / "stress.jpg").stat().st_size > 500
    usual, stronger, faster = (bench_stress.runs_of(each, tmp_path, tmp_path / "store") for each in chosen)
    assert usual.small.lora("subject", PAIR[0]) == shipped and stronger.small.lora("subject", PAIR[0]) == other
    entries = [each.entries() for each in chosen]
    assert [entry.cfg for entry in entries[2]] == [1.0] * 3 and entries[0][0].cfg is None
    drawn = [
        runs.pictures(its[-1], PAIR, [500])[0] for runs, its in zip((usual, stronger, faster), entries, strict=True)
    ]
    assert all(
        (one - other).abs().max() > 0.05 for one, other in zip(drawn, (drawn[1], drawn[2], drawn[0]), strict=True)
    )
    assert faster.small.model.patches and not usual.small.model.patches
    with pytest.raises(SystemExit, match=r"no .*wide: python -m benchmarks\.emoji\.world\.stress"):
        bench_stress.runs_of(tables.Arrangement("both of rank 32", ("wide",)), tmp_path, tmp_path)
