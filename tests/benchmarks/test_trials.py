"""What only the ablations use: other readings of the KL score, and files cut to a smaller rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.emoji.methods import lora_ranks, trial_scores
from benchmarks.emoji.methods.policies import parse_method
from benchmarks.emoji.tables import ablations
from benchmarks.emoji.world.small_world import SmallWorld
from lora_conductor.fusion.policies import scores
from repo_paths import ASSETS


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = 2 * torch.randn(3, 5, 7, generator=generator)
    return base, torch.randn(2, 3, 5, 7, generator=generator)


@pytest.mark.parametrize(("name", "axis", "swapped"), [("reverse_kl", -1, True), ("kl_over_tokens", -2, False)])
def test_a_score_is_what_it_is_called(
    name: str, axis: int, swapped: bool, features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    base, delta = (t.double() for t in features)
    first, second = torch.log_softmax(base + delta, axis), torch.log_softmax(base.expand_as(delta), axis)
    if swapped:
        first, second = second, first
    dense = (first.exp() * (first - second)).sum(axis).mean(-1)
    torch.testing.assert_close(trial_scores.TRIALS[name](*features).double(), dense, rtol=1e-5, atol=1e-6)


def test_a_batch_shares_one_score(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    shared = trial_scores.kl_of_batch(*features)
    each = scores.kl_softmax(*features)
    assert shared.shape == each.shape
    torch.testing.assert_close(shared, each.mean(-1, keepdim=True).expand_as(each))


def test_every_row_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, score in trial_scores.TRIALS.items():
        monkeypatch.setitem(scores.SCORES, name, score)  # which the rows register: gone again after this test
    labels = [entry.label for entry in ablations.rows()]
    assert len(labels) == len(set(labels)) > 50
    for entry in ablations.rows():
        parse_method(entry.method)


def test_cut_files_keep_the_largest_singular_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_ranks, "FOLDER", tmp_path)
    path = ASSETS / "loras" / "lora_subject_fox.safetensors"
    assert lora_ranks.cut(path, 8) == path
    whole, small = load_file(path), load_file(lora_ranks.cut(path, 2))
    assert set(whole) == set(small)

    def delta(weights: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
        down = weights[f"{layer}.lora_down.weight"].double()
        return weights[f"{layer}.lora_up.weight"].double() @ down * (float(weights[f"{layer}.alpha"]) / down.shape[0])

    for layer in {name.rsplit(".", 1)[0].removesuffix(".lora_down").removesuffix(".lora_up") for name in whole}:
        before, after = torch.linalg.svdvals(delta(whole, layer)), torch.linalg.svdvals(delta(small, layer))
        torch.testing.assert_close(after[:2], before[:2], rtol=5e-3, atol=1e-5)
        assert after[2] < 5e-3 * after[0]


def test_cures_do_nothing_at_one_and_what_they_say_beyond() -> None:
    small = SmallWorld()
    files = small.lora("subject", "fox"), small.lora("style", "openmoji")

    def picture(method: str, cfg: float = 1.0, steps: int = 1) -> torch.Tensor:
        model = parse_method(method)(small.model, *files)
        return small.sample(model, "fox", "openmoji", [1], steps=steps, cfg=cfg)

    plain, ours = picture("core:0/0"), picture("recommended")
    # One step is x0 itself.
    torch.testing.assert_close(picture("base 1.5/1:recommended"), plain + 1.5 * (ours - plain), rtol=1e-4, atol=1e-4)
    for method in ("base 1/1:recommended", "base 3/0:recommended"):
        torch.testing.assert_close(picture(method, steps=3), picture("recommended", steps=3), rtol=1e-4, atol=1e-4)
    early = picture("base 3/.5:recommended", steps=3)
    assert (early - picture("recommended", steps=3)).abs().max() > 0.1
    assert (early - picture("base 3/1:recommended", steps=3)).abs().max() > 0.01
    # Core's node counts guidance once more than CFG says.
    guided = picture("core:1/1", cfg=2.5, steps=2)
    torch.testing.assert_close(picture("apg 1/0:core:1/1", cfg=1.5, steps=2), guided, rtol=1e-3, atol=1e-3)
    assert (picture("apg 0/0:core:1/1", cfg=1.5, steps=2) - guided).abs().max() > 0.01
