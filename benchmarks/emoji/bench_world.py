"""Rebuild the small worlds from public packages: pictures, autoencoder, base, encoders, judge, LoRAs of all splits, and
the model whose guidance is distilled and the UNet, with LoRAs of their own.

    make bench-world ARGS="--out FOLDER"             # about seven hours of two CPU cores
    make bench-world ARGS="--out FOLDER --quick"     # minutes: every stage, nothing learned

FOLDER is then what the other tools take as ``--world FOLDER``. A stage whose files are there is not run again, so a run
that was cut goes on where it was; to make something anew, delete its file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repo_paths import REPO

from .world import files
from .world.kinds import BASE, DISTILLED_OWN, UNET, Kind
from .world.rendered_styles import RENDERED
from .world.splits import FRESH, STYLES, TEST, TUNE

SUBJECT_RANKS = (8, (*TUNE, *TEST)), (4, FRESH)
STYLE_RANKS = (8, STYLES), (4, tuple(RENDERED))
OWN_RANK = 4
"""Of the LoRAs that the other worlds' models learn themselves."""
BUDGET_FILE = "budget.txt"


@dataclass(frozen=True)
class Stage:
    """One command: a module with its arguments. makes: files in the world's folder; each: minutes a file takes on
    two idle cores."""

    title: str
    makes: Sequence[str]
    command: Sequence[str]
    each: float
    names: Sequence[str] = ()
    """What the command is told to make, one name a file of `makes`; where empty, it makes them all at once."""

    def missing(self, out: Path) -> list[int]:
        """Which of its files are not there."""
        return [i for i, name in enumerate(self.makes) if not (out / name).exists()]

    def minutes(self, out: Path) -> float:
        """What is left of it takes about so long."""
        missing = self.missing(out)
        return self.each * (len(missing) if self.names else bool(missing))

    def run(self, out: Path) -> None:
        """Make what is missing. Raises subprocess.CalledProcessError, and FileNotFoundError if it made too little."""
        module, *arguments = self.command
        chosen = [self.names[i] for i in self.missing(out)] if self.names else []
        # Names come first: they are what argparse would otherwise take for values of an option.
        command = [sys.executable, "-m", f"benchmarks.emoji.{module}", *arguments[:1], *chosen, *arguments[1:]]
        subprocess.run(command, check=True, cwd=REPO)
        if left := self.missing(out):
            raise FileNotFoundError(f"{self.title}: {module} did not write {self.makes[left[0]]}")


def stages(out: Path, quick: bool) -> list[Stage]:
    """All stages in order. quick: a few steps each."""

    def brief(*arguments: str) -> tuple[str, ...]:
        return arguments if quick else ()

    there, here = ("--world", str(out)), str(out)
    found = [
        Stage(
            "pictures",
            (files.ARCHIVE, files.WORDS, files.STYLE_SUBJECTS),
            ("world.archive", "--out", here, *brief("--others", "24")),
            2,
        ),
        Stage(
            "autoencoder",
            (files.AUTOENCODER,),
            ("world.autoencoder", *there, *brief("--steps", "4")),
            35,
        ),
        Stage(
            "base",
            (files.MODEL, files.TOKENS),
            ("world.base", *there, *brief("--steps", "4")),
            60,
        ),
    ]
    for kind in ("clip", "dino"):
        into = str(out / "clip_vision")
        command = ("world.encoders", kind, *there, "--out", into, *brief("--minutes", "0.1"))
        found.append(Stage(f"{kind} encoder", (f"clip_vision/{files.encoder(kind)}",), command, 8))
    judge = f"judge/{files.JUDGE}"
    command = ("judging.train_judge", *there, "--out", str(out / judge), *brief("--minutes", "0.1"))
    found.append(Stage("judge", (judge,), command, 30))
    distilled = ("world.distilled", *there, *brief("--steps", "2"))
    few = brief("--steps", "2")
    return [
        *found,
        *(lora_stage(out, BASE, "subject", *each, few) for each in SUBJECT_RANKS),
        *(lora_stage(out, BASE, "style", *each, few) for each in STYLE_RANKS),
        Stage("guidance distilled", (files.DISTILLED,), distilled, 50),
        lora_stage(out, DISTILLED_OWN, "subject", OWN_RANK, (*TEST, *FRESH), few),
        lora_stage(out, DISTILLED_OWN, "style", OWN_RANK, (*STYLES, *RENDERED), few),
        Stage("UNet", (files.UNET, files.UNET_TOKENS), ("world.unet", *there, *brief("--steps", "2")), 55),
        lora_stage(out, UNET, "subject", OWN_RANK, (*TUNE, *TEST, *FRESH), few),
        lora_stage(out, UNET, "style", OWN_RANK, (*STYLES, *RENDERED), few),
    ]


def lora_stage(out: Path, kind: Kind, role: str, rank: int, names: Sequence[str], brief: Sequence[str]) -> Stage:
    """LoRAs of a role and rank for the model of one small world. brief: arguments of a quick run."""
    of = () if kind is BASE else ("--world-kind", kind.name)
    command = ("world.loras", role, "--world", str(out), *of, "--out", str(out / "loras"), "--rank", str(rank), *brief)
    makes = [f"loras/{files.lora(role, name, kind.loras)}" for name in names]
    title = f"{role} LoRAs of rank {rank}" + ("" if kind is BASE else f" on the {kind.loras} model")
    return Stage(title, makes, command, {"subject": 1.0, "style": 2.5}[role], names)


def build(out: Path, quick: bool) -> None:
    """Run what is missing; a line before and after each stage.

    Raises ValueError if the folder holds a world of the other budget, and what `Stage.run` raises.
    """
    out.mkdir(parents=True, exist_ok=True)
    budget, wanted = out / BUDGET_FILE, "quick" if quick else "full"
    if budget.exists() and budget.read_text() != wanted:
        raise ValueError(f"{out} holds a {budget.read_text()} world; choose another folder or delete it")
    budget.write_text(wanted)
    todo = stages(out, quick)
    if not quick:
        minutes = sum(stage.minutes(out) for stage in todo)
        print(f"About {minutes / 60:.1f} hours on two idle CPU cores, into {out}", flush=True)
    begun = time.monotonic()
    for i, stage in enumerate(todo):
        label = f"[{i + 1}/{len(todo)}] {stage.title}"
        if not stage.missing(out):
            print(f"{label}: there already", flush=True)
            continue
        print(label + ("" if quick else f": about {stage.minutes(out):.0f} min"), flush=True)
        start = time.monotonic()
        stage.run(out)
        print(f"{label}: done in {(time.monotonic() - start) / 60:.1f} min", flush=True)
    print(f"World complete after {(time.monotonic() - begun) / 60:.1f} min: --world {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the world")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args()
    try:
        build(options.out.resolve(), options.quick)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: {error.cmd[2]} failed; the same command goes on from here") from None


if __name__ == "__main__":
    main()
