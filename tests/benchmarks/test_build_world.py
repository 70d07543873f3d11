"""Rebuilding the small world: pictures matched across sets, and trained files that ComfyUI's own loaders read."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional

from benchmarks.emoji import bench_world
from benchmarks.emoji.methods.policies import core_stacked, routed
from benchmarks.emoji.world import (
    archive,
    autoencoder,
    base,
    distilled,
    emoji_sets,
    files,
    loras,
    training,
    unet,
    vocabulary,
)
from benchmarks.emoji.world.kinds import BASE, DISTILLED, DISTILLED_OWN, KINDS, UNET, add_option
from benchmarks.emoji.world.objectives import OBJECTIVES
from benchmarks.emoji.world.small_world import SmallWorld
from benchmarks.emoji.world.splits import FRESH, STYLES, TEST, TUNE
from lora_conductor.fusion.policies import Sum
from repo_paths import ASSETS

SQUARE = '<path d="M0 0h8v4h-8z" fill="#f00"/>'
DISC = '<circle cx="12" cy="12" r="3"/>'


def emoji_set(names: dict[str, str], characters: dict[str, str], aliases: dict[str, str] | None = None):
    """A set of 16 x 16 drawings: SVG bodies by name."""
    bodies = {name: (body, (0.0, 0.0, 16.0, 16.0)) for name, body in names.items()}
    return emoji_sets.EmojiSet(bodies, aliases or {}, characters, dict.fromkeys(names, "Objects"))


@pytest.fixture
def sets() -> dict[str, emoji_sets.EmojiSet]:
    characters = {"1f3af": "target", "26bd": "ball", "1f550": "one-oclock", "1f3f3-1f308": "flag"}
    known = emoji_set(
        {"target": SQUARE, "ball": DISC, "one-oclock": DISC, "flag": DISC}, characters, {"direct-hit": "target"}
    )
    silent = emoji_set({"direct-hit": SQUARE}, {})
    return {name: known if i < 5 or name == "openmoji" else silent for i, name in enumerate(emoji_sets.SETS)}


def test_subjects_are_matched_by_code_point_and_by_older_names(sets: dict[str, emoji_sets.EmojiSet]) -> None:
    ((subject, drawn),) = emoji_sets.match(sets)  # the ball is in five sets only; no clock, no sequence
    assert (subject.name, subject.code_point, subject.category) == ("target", "1f3af", "Objects")
    assert drawn == {name: "target" if sets[name].characters else "direct-hit" for name in emoji_sets.SETS}


def test_a_name_that_is_anothers_own_is_not_taken() -> None:
    one = emoji_set({"a": SQUARE, "b": DISC}, {"1": "a", "2": "b"}, {"old-a": "a"})
    other = emoji_set({"b": DISC, "a": SQUARE}, {"2": "b"}, {"b": "a"})
    assert emoji_sets._names([one, other])["1"] == ["a", "old-a"]


def test_drawings_are_cropped_squared_and_centred(sets: dict[str, emoji_sets.EmojiSet]) -> None:
    wide, disc = (archive.draw(sets["noto"].svg(name)) for name in ("target", "ball"))
    assert wide.shape == disc.shape == (64, 64, 3)
    red = (wide == (255, 0, 0)).all(axis=2)
    assert red[32, 2:62].all() and red[18:46, 32].all()
    assert (wide[:14] == 255).all() and (wide[:, :2] == 255).all() and (wide[50:] == 255).all()
    assert (disc[32, 4:60] < 10).all() and (disc[2, 2] == 255).all()
    with pytest.raises(ValueError, match="paints nothing"):
        archive.draw(emoji_set({"x": ""}, {}).svg("x"))


def test_a_failing_npm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no registry here')"]
    monkeypatch.setattr(emoji_sets, "npm_command", lambda: failing)
    with pytest.raises(emoji_sets.SetError, match="(?s)no registry here.*npm ping"):
        emoji_sets.fetch(tmp_path)


def test_splits_are_those_of_the_tools_and_of_the_shipped_world() -> None:
    splits = vocabulary.read_splits()
    assert sorted(splits["holdout_subjects"]) == sorted((*TUNE, *TEST, *FRESH))
    assert tuple(splits["holdout_styles"]) == STYLES
    shipped = json.loads((ASSETS / "tokens" / files.WORDS).read_text(encoding="utf-8"))
    for held in ("holdout_subjects", "holdout_styles"):
        assert splits[held] == shipped[held]
    assert all(f"subject:{name}" in shipped["tokens"] for name in splits["style_lora_subjects"])


def make_archive(folder: Path) -> None:
    """Held-out subjects, four for training and a person: coloured boxes in ten styles of frames."""
    learned = vocabulary.read_splits()["style_lora_subjects"][:4]
    names = [*vocabulary.read_splits()["holdout_subjects"], *learned, "guard"]
    images = np.full((len(names), len(emoji_sets.SETS), 64, 64, 3), 255, dtype=np.uint8)
    colours = np.random.default_rng(0).integers(0, 200, (len(names), 3))
    for style in range(len(emoji_sets.SETS)):
        images[:, style, 8:56, 8:56] = colours[:, None, None]
        images[:, style, 20:40, 20 : 22 + 2 * style] = 255
    subject, style = np.indices(images.shape[:2]).reshape(2, -1)
    np.savez_compressed(
        folder / files.ARCHIVE,
        images=images.reshape(-1, 64, 64, 3),
        subject=subject,
        style=style,
        subject_names=np.array(names),
        subject_cat=np.array(["Objects"] * (len(names) - 1) + [vocabulary.PEOPLE]),
        style_names=np.array(list(emoji_sets.SETS)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A world trained for moments."""
    path = tmp_path_factory.mktemp("world")
    make_archive(path)
    vocabulary.write(path)
    yield path


@pytest.fixture(autouse=True)
def a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that also learns in moments where a CPU has no bfloat16: torch's Muon knows no other dtype."""
    monkeypatch.setattr(base, "WIDTH", 128)
    narrow = {"vec_in_dim": 128, "context_in_dim": 128, "hidden_size": 128, "num_heads": 1}
    for name, value in {**narrow, "depth": 1, "depth_single_blocks": 1}.items():
        monkeypatch.setitem(base.SHAPE, name, value)


def keys(file: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
        return {k: (opened.get_slice(k).get_dtype(), opened.get_slice(k).get_shape()) for k in names}


def kinds(file: Path) -> dict[str, tuple[str, int]]:
    """Dtype and dimensions of a file's tensors, of the first block of a kind."""
    found = keys(file).items()
    return {key: (dtype, len(shape)) for key, (dtype, shape) in found if not re.search(r"_blocks\.[1-9]", key)}


def test_training_lowers_the_loss_and_the_host_loads_and_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    monkeypatch.setattr(autoencoder, "BATCH", 8)
    with np.load(folder / files.ARCHIVE) as pictures:
        images = torch.from_numpy(pictures["images"]).permute(0, 3, 1, 2).contiguous()
    some = images[::31].float() / 255
    torch.manual_seed(0)
    before = float(autoencoder.loss_of(autoencoder.fresh(), some).detach())
    trained = autoencoder.train(images, 12)
    after = float(autoencoder.loss_of(trained, some).detach())
    record_property("autoencoder loss after / before", after / before)
    assert after < 0.7 * before
    file = folder / files.AUTOENCODER
    autoencoder.save(trained, file)
    assert keys(file) == keys(ASSETS / "vae" / file.name)

    lessons = base.Lessons.read(folder, autoencoder.load(file))
    assert len(lessons.ids) == 4 * 8, "four subjects in eight styles: nothing held out, no people"
    base.save(base.train(lessons, 30, batch=16), lessons.names, folder)
    assert kinds(folder / files.MODEL) == kinds(ASSETS / "diffusion_models" / files.MODEL)

    small = SmallWorld(folder)
    assert all(small.file(name).parent == folder for name in (files.MODEL, files.TOKENS, files.WORDS))
    noise = torch.randn(len(lessons.ids), 16, 8, 8, generator=torch.Generator().manual_seed(1))
    at = torch.full((len(noise),), 0.7)
    mixed = 0.3 * lessons.latents + 0.7 * noise
    conditions = [small.conditioning([lessons.names[i] for i in ids])[0] for ids in lessons.ids.tolist()]
    context = torch.cat([each for each, _ in conditions])
    pooled = torch.cat([extra["pooled_output"] for _, extra in conditions])
    with torch.inference_mode():
        network = small.model.model.diffusion_model
        predicted = network(mixed, at, context, pooled, None, transformer_options={})
    wanted = noise - lessons.latents
    share = float(functional.mse_loss(predicted, wanted) / wanted.square().mean())
    record_property("base loss after / before", share)
    assert share < 0.8, "as bad as at the start, where the model says zero"
    pictures = small.decode(small.sample(small.model, "fox", "openmoji", [1, 2], steps=2))
    assert pictures.shape == (2, 3, 64, 64) and pictures.isfinite().all()
    assert (pictures[0] - pictures[1]).abs().max() > 0.01


def test_training_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 2)
    # It is chosen by timing: on a busy machine the two trainings could compute in different ones.
    monkeypatch.setattr(training, "faster_dtype", lambda: torch.float32)
    latents = torch.randn(8, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["<bos>", "<null>", "style:a", "<sks_style0>", "subject:b", "<sks_subject0>", "class:c"]
    lessons = base.Lessons(latents, torch.tensor([[0, 2, 4, 6]] * 8), names)
    whole = base.train(lessons, 5, batch=2)

    state, step = tmp_path / base.STATE, training.Masters.step

    def cut(masters: training.Masters, done: float) -> None:
        if masters.steps == 3:
            raise KeyboardInterrupt
        step(masters, done)

    monkeypatch.setattr(training.Masters, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        base.train(lessons, 5, batch=2, state=state)
    monkeypatch.setattr(training.Masters, "step", step)
    again = base.train(lessons, 5, batch=2, seed=1, state=state)
    assert [path.name for path in tmp_path.iterdir()] == [state.name]
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


def a_tiny_world(folder: Path, words: Path) -> base.Lessons:
    """A base that was trained for moments on eight pictures, each with its own prompt; into the folder."""
    shutil.copy(words, folder / files.WORDS)
    names = json.loads(words.read_text(encoding="utf-8"))["tokens"]
    subjects = [i for i, name in enumerate(names) if name.startswith("subject:")][:4]
    styles = [i for i, name in enumerate(names) if name.startswith("style:")][:2]
    ids = [[names.index("<bos>"), style, subject, names.index("<null>")] for style in styles for subject in subjects]
    latents = torch.randn(len(ids), 16, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8)
    lessons = base.Lessons(latents.clone(), torch.tensor(ids), names)
    base.save(base.train(lessons, 60, batch=16), names, folder)
    return lessons


def test_a_distilled_model_says_in_one_pass_what_the_base_says_in_two(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    lessons = a_tiny_world(tmp_path, folder / files.WORDS)
    small = SmallWorld(tmp_path)
    network, null = small.model.model.diffusion_model, small.conditioning(["<null>"] * 4)[0]
    names = [lessons.names[i] for i in lessons.ids[0].tolist()]
    positive = small.conditioning(names)[0]
    noise = torch.randn(6, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.linspace(0.2, 0.9, 6)
    x = sigma[:, None, None, None] * noise + (1 - sigma)[:, None, None, None] * lessons.latents[:1]

    def says(model: torch.nn.Module, condition: list, guidance: torch.Tensor | None = None) -> torch.Tensor:
        context, extra = condition
        context, pooled = context.expand(6, -1, -1), extra["pooled_output"].expand(6, -1)
        with torch.inference_mode():
            return model(x, sigma, context, pooled, guidance, transformer_options={})

    plain, empty = says(network, positive), says(network, null)
    scale = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
    wanted = empty + scale[:, None, None, None] * (plain - empty)
    ids, own = lessons.ids[:1].expand(6, -1), distilled.Prompted(network, *small.tables)
    with torch.inference_mode():
        torch.testing.assert_close(distilled.guided(own, x, sigma, ids, lessons.names.index("<null>"), scale), wanted)
    assert torch.equal(says(distilled.student(network), positive, scale), plain), "it begins as the base"

    state = tmp_path / distilled.STATE
    base.save_model(distilled.train(small, lessons, 120, batch=16, state=state), tmp_path / files.DISTILLED)
    assert state.exists()
    made = kinds(tmp_path / files.DISTILLED)
    assert made.items() >= kinds(tmp_path / files.MODEL).items()
    assert made.keys() - kinds(tmp_path / files.MODEL).keys() == {
        f"guidance_in.{layer}.{what}" for layer in ("in_layer", "out_layer") for what in ("weight", "bias")
    }
    student = SmallWorld(tmp_path, DISTILLED)
    found = says(student.model.model.diffusion_model, positive, scale)
    share = float((found - wanted).square().mean() / (plain - wanted).square().mean())
    record_property("error / that without guidance", share)
    assert share < 0.5

    told: list[torch.Tensor] = []
    student.model.model.diffusion_model.register_forward_pre_hook(lambda module, given: told.append(given[4]))
    for name, value in (("STEPS", 3), ("BATCH", 2), ("COPIES", 1)):
        monkeypatch.setitem(getattr(loras, name), "subject", value)
    samples = [loras.Sample(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)), tuple(names))]
    lora = loras.train(student, samples, "subject", rank=2, seed=0)
    assert [guidance.tolist() for guidance in told] == [[1.0, 1.0]] * 3, "as trainers for FLUX-dev do"
    assert all(branch.up.abs().max() > 0 for branch in lora.values())


def test_guidance_is_in_the_conditioning_of_a_distilled_world(student_world: Path) -> None:
    from comfy_extras.nodes_flux import FluxGuidance

    plain, ours = (SmallWorld(student_world, kind).prompt("fox", "openmoji") for kind in (BASE, DISTILLED))
    (by_core,) = FluxGuidance.execute(plain, 2.5).result
    ((context, extra),), ((_, expected),) = ours, by_core
    assert extra["guidance"] == expected["guidance"] == 2.5 and extra.keys() == expected.keys()
    assert torch.equal(context, plain[0][0]) and "guidance" not in plain[0][1]


def test_a_unet_is_loaded_and_learns_loras_of_its_convolutions(folder: Path, tmp_path: Path) -> None:
    """Trained for moments, through ComfyUI's own loaders, and a picture sampled with and without its LoRA."""
    shutil.copy(folder / files.WORDS, tmp_path / files.WORDS)
    words = json.loads((folder / files.WORDS).read_text(encoding="utf-8"))
    ids = [words["tokens"].index("<bos>")] + [words["tokens"].index("<null>")] * 3
    latents = torch.randn(4, 16, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8).clone()
    lessons = base.Lessons(latents, torch.tensor([ids] * 4), words["tokens"])
    unet.save(unet.train(lessons, 3, batch=2), lessons.names, tmp_path)
    small = SmallWorld(tmp_path, UNET)
    assert small.model.model.model_type.name == "EPS"
    latents_of = small.model.model.latent_format
    assert (latents_of.scale_factor, latents_of.shift_factor) == (autoencoder.SCALE, autoencoder.SHIFT)
    levels = OBJECTIVES["noise"].signal
    sampling = small.model.model.model_sampling
    torch.testing.assert_close(levels, 1 / (1 + sampling.sigmas.square()), rtol=1e-4, atol=1e-6)

    x, level = torch.randn(2, 16, 8, 8), torch.tensor([3.0, 700.0])
    context = small.conditioning([lessons.names[i] for i in ids])[0][0].expand(2, -1, -1)
    sigma = sampling.sigmas[level.long()]
    with torch.inference_mode():
        # As core calls it: x0 from what it says of the noise.
        noised = x * (1 + sigma[:, None, None, None].square()).sqrt()
        x0 = small.model.model.apply_model(noised, sigma, c_crossattn=context)
        torch.testing.assert_close(
            x0, noised - small.predict(x, level, context, context) * sigma[:, None, None, None], rtol=1e-3, atol=1e-3
        )

    rendered = loras.Sample(
        torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)), ("<bos>", *["<null>"] * 3)
    )
    with pytest.MonkeyPatch.context() as few:
        for name, value in (("STEPS", 2), ("BATCH", 2), ("COPIES", 1)):
            few.setitem(getattr(loras, name), "subject", value)
        lora = loras.train(small, [rendered], "subject", rank=2, seed=0)
    assert all(branch.up.abs().max() > 0 for branch in lora.values())
    path = tmp_path / files.lora("subject", "fox", UNET.loras)
    loras.save(lora, 2, path)
    small = SmallWorld(tmp_path, UNET)
    assert small.lora("subject", "fox") == path
    tensors = load_file(path)
    convolved = [name for name, t in tensors.items() if t.ndim == 4 and t.shape[-1] == 3]
    assert {name.partition("_blocks")[0] for name in convolved} >= {"lora_unet_input", "lora_unet_output"}
    merged = core_stacked(1.0, 0.0)(small.model, path, path)
    assert len(merged.patches) == len(lora), "every key finds its layer"
    fused_too = routed(Sum(), 1.0, 0.0)(small.model, path, path)
    plain, by_core, ours = (small.sample(m, "fox", None, [1], steps=2) for m in (small.model, merged, fused_too))
    moved = float((by_core - plain).abs().max())
    assert moved > 1e-4 and float((by_core - ours).abs().max()) < 0.02 * moved


def test_a_world_is_chosen_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_option(parser)
    assert parser.parse_args([]).kind is BASE
    chosen = [parser.parse_args(["--world-kind", name]).kind for name in KINDS]
    assert [kind.name for kind in chosen] == list(KINDS) == ["base", "distilled", "distilled-own", "unet"]
    assert [kind.suffix for kind in chosen] == ["", "-distilled", "-distilled-own", "-unet"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--world-kind", "other"])
    assert "--world-kind is one of base, distilled, distilled-own, unet" in capsys.readouterr().err
    assert DISTILLED.sampling(8) == "8 Euler steps, CFG 1, embedded guidance 2.5"
    assert files.lora("style", "openmoji", DISTILLED_OWN.loras) == "lora_distilled_style_openmoji.safetensors"


def test_stages_are_skipped_where_their_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(command: list[str], check: bool, cwd: Path) -> None:
        ran.append(command)
        for stage in bench_world.stages(tmp_path, quick=True):
            if command[2].endswith(f".{stage.command[0]}") and set(stage.command[1:]) <= set(command):
                for name in stage.makes:
                    (tmp_path / name).parent.mkdir(exist_ok=True)
                    (tmp_path / name).touch()

    ran: list[list[str]] = []
    monkeypatch.setattr(bench_world.subprocess, "run", pretend)
    bench_world.build(tmp_path, quick=True)
    assert len(ran) == len(bench_world.stages(tmp_path, quick=True))
    ran.clear()
    gone = [tmp_path / "loras" / f"lora_subject_{name}.safetensors" for name in ("alien", "fox")]
    for file in gone:
        file.unlink()
    bench_world.build(tmp_path, quick=True)
    (command,) = ran
    assert command[3:6] == ["subject", "fox", "alien"]
    with pytest.raises(ValueError, match="holds a quick world"):
        bench_world.build(tmp_path, quick=False)
