"""A part of the grid of file kinds: every oddity, the adapters that look at the weight, every dialect. The whole of it:
``make file-grid``.
"""

import subprocess
import sys

import pytest

from repo_paths import REPO

from .dialects import GENERIC, KOHYA
from .grid import BREAKS, EXACT, Grid
from .oddities import ODDITIES


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return Grid("Flux", tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("oddity", ODDITIES)
def test_plain_loras_with_everything_that_is_odd(grid, oddity):
    cell = grid.measure(GENERIC, KOHYA, "lora", oddity)
    assert cell.passed, cell


@pytest.mark.parametrize("kind", ["dora_out_lora", "dora_in_loha", "oft"])
def test_adapters_that_look_at_the_weight_in_chains(grid, kind):
    cell = grid.measure(GENERIC, KOHYA, kind, "core's behind")
    assert cell.passed, cell


def test_every_dialect(grid):
    for head in grid.prefixes:
        cell = grid.measure(head, KOHYA, ("lora", "loha", "lokr")[len(head) % 3], "none")
        assert cell.passed, cell


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_delta_fails_its_cell(grid, name):
    cell = grid.measure(GENERIC, KOHYA, "lora", "none", BREAKS[name])
    assert cell.error > 3 * EXACT and not cell.passed


def test_what_is_refused_without_need_fails_its_cell(grid, monkeypatch):
    """... and what is left out in silence, too."""
    monkeypatch.setattr(f"{Grid.__module__}.model_patches", _refusing)
    assert not grid.measure(GENERIC, KOHYA, "lora", "none").passed


def _refusing(file, model):
    class Patches:
        refused = {next(iter(file.tensors)): "for no reason"}

    return Patches()


def test_the_command_marks_a_broken_delta(tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "tests.host.file_kinds", "--model", "Flux", "--kind", "lora"]
    command += ["--oddity", "control LoRA", "--break", "louder", "--output", page]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 1, done.stderr
    assert "FAILED Cell(model='Flux', dialect='diffusion_model.', kind='lora', oddity='control LoRA'" in done.stdout
    assert "| **FAILED" in page.read_text() and "--break louder" in page.read_text()
