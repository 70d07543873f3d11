"""Options that ComfyUI is started with, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from repo_paths import REPO

from .ways import EXACT

RATIO = 1.3  # of core's own error in a low precision; as in tests/host/families
CPU: tuple[str, ...] = ("--cpu",)
FLAGS: list[tuple[str, ...]] = [
    CPU,
    (*CPU, "--fp16-intermediates"),
    (*CPU, "--force-fp16"),
    (*CPU, "--force-fp32"),
    (*CPU, "--bf16-unet"),
    (*CPU, "--fp16-unet"),
    (*CPU, "--fp8_e4m3fn-unet"),
    (*CPU, "--fast"),
    (*CPU, "--disable-dynamic-vram"),
    (*CPU, "--force-channels-last"),
    (*CPU, "--use-quad-cross-attention"),
    ("--lowvram",),
    ("--novram",),
    ("--highvram",),
]


@dataclass(frozen=True)
class FlagCell:
    """What came of a start with options.

    Attributes:
        error: of our sum against core's merge, of the range.
        rounding: what one step of the output's own precision is, of the range: what half precision rounds to.
        ours, core: RMS errors of both against float32, of the range.
        said: by what did not start.
    """

    flags: tuple[str, ...]
    error: float = 0.0
    rounding: float = 0.0
    ours: float = 0.0
    core: float = 0.0
    said: str = ""

    @property
    def passed(self) -> bool:
        if self.said:
            return "--cpu" not in self.flags
        return self.error <= max(EXACT, self.rounding) or self.ours <= RATIO * self.core

    @property
    def text(self) -> str:
        if self.said:
            return "does not start" if self.passed else "**FAILED**"
        shown = f"{self.error:.0e}"
        if EXACT < self.error <= self.rounding:
            shown += "; the output is rounded in steps of " + f"{self.rounding:.0e}"
        elif self.error > EXACT and self.core:
            shown += f"; {self.ours / self.core:.2f} of ComfyUI's error"
        return shown if self.passed else f"**FAILED {shown}**"


def measure_flags(flags: tuple[str, ...]) -> FlagCell:
    """Start a process with these options and sample in it."""
    device = "cpu" if "--cpu" in flags else "gpu"
    environment = {**os.environ, "LORA_CONDUCTOR_TEST_DEVICE": device}
    command = [sys.executable, "-m", "tests.host.sampling.flagged", *flags]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    if done.returncode:
        return FlagCell(flags, said=(done.stderr.strip().splitlines() or ["no message"])[-1][:160])
    return FlagCell(flags, **json.loads(done.stdout.strip().splitlines()[-1]))


def rows(cells: list[FlagCell]) -> Iterator[str]:
    """The cells as Markdown, and what was said by those that did not start."""
    yield "| started with | sum against ComfyUI's loaders |"
    yield "| --- | --- |"
    for cell in cells:
        yield f"| `{' '.join(cell.flags)}` | {cell.text} |"
    yield ""
    for said in dict.fromkeys(cell.said for cell in cells if cell.said):
        yield f"- {', '.join(' '.join(cell.flags) for cell in cells if cell.said == said)}: {said}"
