"""The command of the grid, with a delta broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from repo_paths import REPO


def test_a_broken_delta_is_marked_and_fails_the_command(tmp_path: Path) -> None:
    page = tmp_path / "grid.md"
    command = [sys.executable, "-m", "tests.host.families", "--family", "Hunyuan3Dv2", "--break", "louder"]
    done = subprocess.run([*command, "--output", page], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 1, done.stderr
    assert "FAILED Hunyuan3Dv2 lora torch.float32" in done.stdout
    row = next(line for line in page.read_text().splitlines() if line.startswith("| Hunyuan3Dv2 |"))
    assert "**FAILED" in row
    assert '`make family-grid ARGS="--family Hunyuan3Dv2 --break louder"`' in page.read_text()
