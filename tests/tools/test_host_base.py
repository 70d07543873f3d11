"""Base directories: what is linked, and that the assets they link to stay untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import host_base
import repo_paths


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    world = tmp_path / "world"
    for file in ("assets/loras/a.safetensors", "assets/pictures/fox/fox.png", "world_nodes/__init__.py"):
        (world / file).parent.mkdir(parents=True, exist_ok=True)
        (world / file).write_text(file)
    monkeypatch.setattr(host_base, "WORLD", world)
    return world


def test_links_models_and_node_packs(world: Path, tmp_path: Path) -> None:
    base = host_base.make_base(tmp_path / "base")
    assert (base / "models/loras/a.safetensors").resolve() == world / "assets/loras/a.safetensors"
    assert (base / "input/fox.png").read_text() == "assets/pictures/fox/fox.png"
    assert sorted(p.name for p in (base / "custom_nodes").iterdir()) == ["emoji-world", "lora-conductor"]
    (base / "models/loras/mine.safetensors").write_text("")
    assert not (world / "assets/loras/mine.safetensors").exists()


def test_refresh_follows_the_assets(world: Path, tmp_path: Path) -> None:
    base = host_base.make_base(tmp_path / "base")
    (world / "assets/loras/a.safetensors").rename(world / "assets/loras/b.safetensors")
    host_base.make_base(base)
    assert [p.name for p in (base / "models/loras").iterdir()] == ["b.safetensors"]


def test_packed_models_are_unpacked_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_base, "BUILD", tmp_path / "build")
    packed = {"linear.weight": torch.randn(8, 4).to(torch.float8_e4m3fn), "linear.bias": torch.randn(8).half()}
    (world / "assets/diffusion_models").mkdir()
    save_file(packed, world / "assets/diffusion_models/tiny_fp8_e4m3fn.safetensors")
    models = host_base.make_base(tmp_path / "base") / "models/diffusion_models"
    assert [file.name for file in models.iterdir()] == ["tiny_fp16.safetensors"]
    unpacked = load_file(models / "tiny_fp16.safetensors")
    assert all(value.dtype == torch.float16 and value.equal(packed[name].half()) for name, value in unpacked.items())
    made = (models / "tiny_fp16.safetensors").resolve()
    before = made.stat().st_mtime_ns
    host_base.make_base(tmp_path / "other")
    assert made.stat().st_mtime_ns == before
    assert [file.name for file in made.parent.iterdir()] == [made.name]


def test_the_small_world_stays_small() -> None:
    files = [file for file in (repo_paths.WORLD / "assets").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6


def test_bare_base(world: Path, tmp_path: Path) -> None:
    base = host_base.make_base(tmp_path / "base", pack=False, world=False)
    assert list((base / "custom_nodes").iterdir()) == list((base / "models/loras").iterdir()) == []


def test_a_folder_in_the_way_is_not_replaced(world: Path, tmp_path: Path) -> None:
    (tmp_path / "base/custom_nodes/lora-conductor").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        host_base.make_base(tmp_path / "base")
