"""Train LoRAs of the test split as people make them, not as one should: what the stress table is measured with.

    python -m benchmarks.emoji.world.stress --world FOLDER_WITH_emoji64.npz --out FOLDER

Writes FOLDER/KIND/ROLE/: files named as the shipped ones, so that a folder searched before theirs puts them in their
place. (Not into the world's own folder, where they would be found.) What is not there yet is made.

- ``overtrained``: four times the steps;
- ``wide``: rank 32;
- ``attention``: queries, keys, values and outputs of attention alone;
- ``leaky``: a style from eight pictures of one kind, whose subjects it learns, too;
- ``accelerating``: one LoRA of the whole model, to be merged below both others: with it the model says at CFG 1 what it
  says at the world's CFG without (as Meng et al. 2023, stage one, at one scale). As Hyper, Lightning and Turbo files.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...host import enter_host
from . import files, loras
from .base import Lessons
from .distilled import Prompted, guided
from .objectives import OBJECTIVES
from .pictures import Pictures, load_pictures
from .small_world import SmallWorld
from .splits import STYLES, TEST

ACCELERATING = "lora_accelerating.safetensors"
RANK, TIMES, WIDE, FEW, ONE_KIND = 8, 4, 32, 8, "Animals & Nature"
ACCELERATING_RANK, STEPS, BATCH, RATE = 32, 300, 32, 1e-3


@dataclass(frozen=True)
class Kind:
    """A way of making files. few: from how many pictures of one kind, 0 for all; reach: as of `loras.branches`."""

    roles: tuple[str, ...]
    rank: int = RANK
    times: int = 1
    few: int = 0
    reach: loras.Reach | None = None


def attention(name: str, layer: nn.Module) -> int:
    """What belongs to attention: of single blocks, whose `linear1` makes the MLP's input too, its first three parts."""
    assert isinstance(layer, nn.Linear)
    return layer.out_features if "_attn." in name else 3 * layer.in_features if name.endswith("linear1") else 0


KINDS = {
    "overtrained": Kind(("subject", "style"), times=TIMES),
    "wide": Kind(("subject", "style"), rank=WIDE),
    "attention": Kind(("subject", "style"), reach=attention),
    "leaky": Kind(("style",), few=FEW),
}


def train(small: SmallWorld, pictures: Pictures, kind: Kind, role: str, name: str) -> dict[str, loras.Branch]:
    """A LoRA of that kind."""
    samples = loras.samples_of(pictures, small, role, name)
    if kind.few:
        samples = [each for each in samples if f"class:{ONE_KIND}" in each.tokens][: kind.few]
    return loras.train(small, samples, role, kind.rank, steps=loras.STEPS[role] * kind.times, reach=kind.reach)


def accelerate(small: SmallWorld, lessons: Lessons, steps: int = STEPS) -> dict[str, loras.Branch]:
    """A LoRA with which the model needs no guidance."""
    torch.manual_seed(0)
    model = small.model.model.diffusion_model
    with torch.inference_mode(False):
        teacher = Prompted(copy.deepcopy(model).requires_grad_(False), *small.tables)
        student = Prompted(model, *small.tables)
        lora = loras.branches(model, ACCELERATING_RANK)
    null, flow = lessons.names.index("<null>"), OBJECTIVES["flow"]

    def loss_of() -> Tensor:
        x0, ids = lessons.batch(BATCH)
        sigma, scale = flow.levels(BATCH), torch.full((BATCH,), small.kind.cfg)
        x = flow.noised(x0, torch.randn_like(x0), sigma)
        with torch.no_grad():
            wanted = guided(teacher, x, sigma, ids, null, scale)
        return functional.mse_loss(student(x, sigma, ids), wanted)

    return loras.fit(lora, RATE, steps, loss_of)


def make(path: Path, rank: int, train: Callable[[], dict[str, loras.Branch]]) -> None:
    """Train what a file is to hold, unless it is there."""
    if not path.exists():
        print(path.name, path.parent.name, flush=True)
        loras.save(train(), rank, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder with the pictures; a base of its own if any")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    options = parser.parse_args()
    enter_host()
    small, pictures, out = SmallWorld(options.world), load_pictures(options.world), options.out
    if options.quick:
        loras.STEPS.update(subject=1, style=1)
    make(
        out / ACCELERATING,
        ACCELERATING_RANK,
        lambda: accelerate(small, Lessons.read(options.world, small.vae), 1 if options.quick else STEPS),
    )
    for label, kind in KINDS.items():
        for role in kind.roles:
            for name in {"subject": TEST, "style": STYLES}[role]:
                path = out / label / role / files.lora(role, name)
                make(path, kind.rank, lambda kind=kind, role=role, name=name: train(small, pictures, kind, role, name))


if __name__ == "__main__":
    main()
