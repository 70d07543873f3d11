"""Prefixes of saved files: whatever they say, a file lands in ComfyUI's output folder, or nowhere."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import torch

from lora_conductor.fusion.records.plan import Plan, loads
from lora_conductor.host.baking.file import BakedTensors, write
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import write_plan

from .. import mutations
from ..cases import Parser
from ..guard import GUARD, scratch
from . import setting
from .plans import PLANS

SAVED = "fuzzed"


@functools.cache
def _elsewhere() -> Path:
    """A folder outside, to which a link in the output folder leads."""
    with GUARD.resting():
        outside = scratch("fuzz-outside-")
        (setting.OUTPUT / "linked").symlink_to(outside, target_is_directory=True)
    return outside


@functools.cache
def _plan() -> Plan:
    return loads(PLANS.seeds()[0])


def _seeds() -> list[bytes]:
    prefixes = (SAVED, f"{SAVED}/a/b", f"{SAVED}/", f"{SAVED}/%year%-%month%/x", f"{SAVED}/x_00001_", f"./{SAVED}//x")
    return [prefix.encode() for prefix in prefixes]


def _read(data: bytes) -> None:
    prefix = data.decode("utf-8", "surrogateescape")
    outside = _elsewhere()
    before = set(os.listdir(setting.OUTPUT))
    try:
        if len(data) % 4:
            path = Path(write_plan(_plan(), prefix))
        else:
            baked = BakedTensors(0, torch.float32, {"a.lora_up.weight": torch.ones(1, 1)})
            path = write(baked, {"lora_conductor": "{}"}, prefix).path
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(setting.OUTPUT)) and path.stat().st_size
    finally:
        with GUARD.resting():
            assert not any(outside.iterdir())
            for name in set(os.listdir(setting.OUTPUT)) - before:
                made = setting.OUTPUT / name
                shutil.rmtree(made) if made.is_dir() and not made.is_symlink() else made.unlink()


TOKENS = (
    b"../",
    b"..",
    b"/",
    b"//",
    b"\\",
    b"..\\",
    b"C:",
    b":",
    b"~",
    b"%date:yyyy%",
    b"%year%",
    b"%width%",
    b"%",
    b"linked/",
)
TOKENS += (
    b"\0",
    b"\n",
    b"\t",
    b"\x1b[2J",
    b"\xff",
    "\u202e".encode(),
    b"CON",
    b"a" * 300,
    b"a/" * 30,
    b" ",
    b".",
    b"$HOME",
    b"*",
)
PREFIXES = Parser(_seeds, _read, (ConductorError,), (mutations.bytes_with(TOKENS),), quick=300)
