"""Saved files: none replaced, none lost, none half, none outside; and names that lead nowhere else."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest

from lora_conductor.host.core.errors import ConductorError
from lora_conductor.host.core.files import annotated_path, model_path
from lora_conductor.host.core.writing import place_of, write_new

SAVES = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import torchvision_shim
torchvision_shim.install()
from comfy.cli_args import args
args.cpu = True
import folder_paths
folder_paths.set_output_directory({output!r})
from lora_conductor.host.core import writing
if {without_links}:
    def refuse(*_):
        raise OSError("no hard links here")
    writing.os.link = refuse
for i in range(100):
    writing.write_new(writing.place_of("shared/x"), ".json", lambda path: path.write_text({name!r} + str(i)))
"""


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def save(prefix, text="content"):
    return write_new(place_of(prefix), ".json", lambda path: path.write_text(text))


def files(folder):
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("prefix", ["x", "x/", "deep/er/", "./x//", "%year%/x/"])
def test_no_file_of_a_run_before_is_replaced(output, prefix):
    paths = [save(prefix, str(i)) for i in range(3)]
    assert [path.read_text() for path in paths] == ["0", "1", "2"] and len(files(output)) == 3


@pytest.mark.parametrize("without_links", [False, True], ids=["links", "no links"])
def test_two_servers_on_one_folder_lose_nothing(output, without_links):
    def started(name):
        path = [p for p in sys.path if p]
        code = SAVES.format(path=path, output=str(output), name=name, without_links=without_links)
        return subprocess.Popen([sys.executable, "-c", code, "--cpu"])

    assert [process.wait(120) for process in [started("a"), started("b")]] == [0, 0]
    written = sorted(path.read_text() for path in (output / "shared").iterdir())
    assert written == sorted(f"{name}{i}" for name in "ab" for i in range(100))


@pytest.mark.parametrize("at", ["write", "fsync", "link and rename"])
def test_a_full_disk_leaves_nothing(output, monkeypatch, at):
    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(path):
        path.write_text("half")
        if at == "write":
            full()

    if at == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif at == "link and rename":
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_new(place_of("plans/x"), ".json", write)
    assert files(output) == []


def test_a_roundabout_prefix_is_not_a_deep_one(output):
    """As `./` is no folder, it counts as none."""
    assert save(f"saves/{'./' * 100}/x") == save("saves/x").with_name("x_00001_.json")
    with pytest.raises(ConductorError, match="more than 64 folders"):
        save("a/" * 100)


@pytest.mark.parametrize("prefix", ["out/x", "../x", "/tmp/x", "a/../../x"])
def test_nothing_is_written_outside_of_the_output_folder(output, tmp_path_factory, prefix):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (output / "out").symlink_to(elsewhere)
    with pytest.raises(ConductorError, match="filename_prefix: .*outside of the output folder.*Name a file below"):
        save(prefix)
    assert not files(elsewhere) and not files(output)


@pytest.mark.parametrize("prefix", ["a\ud800", "a\0b", "a\nb", "\x1b[2J", "", None, 7, ["x"], "x" * 5000])
def test_a_prefix_that_is_no_name_is_refused(output, prefix):
    with pytest.raises(ConductorError, match=r"^filename_prefix: "):
        save(prefix)
    assert files(output) == []


WRONG = [
    "../../x.json [input]",
    "/etc/passwd",
    "..\\x [output]",
    "a\0b",
    "\ud800",
    "",
    None,
    3,
    [],
    "folder",
    "x" * 5000,
]


@pytest.mark.parametrize("name", WRONG)
def test_a_name_leads_to_its_own_folder_or_nowhere(tmp_path, monkeypatch, name):
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input" / "folder").mkdir(parents=True)
    for wrong in (lambda: annotated_path(name, "file:"), lambda: model_path("loras", name, "subject LoRA")):
        with pytest.raises(ConductorError, match="^(file:|subject LoRA) "):
            wrong()


def test_a_link_out_of_the_input_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "input" / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ConductorError, match="lies outside of"):
        annotated_path("link.json [input]", "file:")
