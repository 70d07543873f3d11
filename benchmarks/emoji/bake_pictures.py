"""A baked LoRA beside the live routing it was made from, judged and drawn: ``output/baked.png``.

    python -m benchmarks.emoji.bake_pictures
    python -m benchmarks.emoji.bake_pictures --pairs fox/openmoji,crown/openmoji --seeds 4 --policy "kl_soft"

Every pair is sampled live; its record and LoRAs are baked, and the file is loaded by ComfyUI's own loader and sampled
with the same seeds. What no file can hold, the LoRAs' smaller part in the negative prompt's pass, is left out of the
run that is baked (emphasis 1); the recommended policy with it stands beside.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repo_paths import OUTPUT

from ..host import enter_host
from .judging.evaluation import Result
from .judging.judge import Judge
from .methods.policies import core_stacked, parse_policy, routed
from .tables.contact_sheet import contact_sheet
from .tables.policies import HEADER, row
from .world.small_world import SmallWorld

PAIRS = (
    "fox/openmoji,sunflower/fluent-emoji-high-contrast,hamburger/openmoji,alien/fluent-emoji-high-contrast,"
    "sailboat/openmoji,crown/fluent-emoji-high-contrast"
)


def baked(small: SmallWorld, live: Any, samples: Tensor, step: int | None, rank: int) -> tuple[Any, float]:
    """The small world's model with the baked file on it, and the file's size in MB."""
    import comfy.sd
    import comfy.utils

    from lora_conductor.host.baking import BakeSettings, bake

    tensors, _ = bake(live, None, samples, BakeSettings(step, rank))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "baked.safetensors")
        comfy.utils.save_torch_file(tensors.tensors, str(path))
        weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(small.model, None, weights, 1.0, 0)[0], tensors.size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    parser.add_argument("--pairs", default=PAIRS, help="subject/style, with commas")
    parser.add_argument("--policy", default="recommended(emphasis=1)", help="of the run that is baked")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair; the first is drawn")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8, help="of the column of lower rank")
    parser.add_argument("--out", type=Path, default=OUTPUT / "baked.png")
    options = parser.parse_args()
    enter_host()
    small, judge = SmallWorld(options.world), Judge.load()
    (policy, refinement), middle = parse_policy(options.policy), small.kind.steps[0] // 2
    kinds: dict[str, tuple[int | None, int]] = {
        "baked average": (None, 0),
        f"baked rank {options.rank}": (None, options.rank),
        f"baked step {middle + 1}": (middle, 0),
    }
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    pictures: dict[str, list[Tensor]] = {}
    scores: dict[str, list[dict[str, Tensor]]] = {}
    sizes: dict[str, float] = {}

    def add(label: str, made: Tensor, subject: str, style: str) -> None:
        shown = small.decode(made)
        pictures.setdefault(label, []).append(shown)
        scores.setdefault(label, []).append(judge.score(shown, subject, style))

    for pair in options.pairs.split(","):
        subject, style = pair.split("/")
        files = small.lora("subject", subject), small.lora("style", style)
        add("stacked 1/1", small.sample(core_stacked(1, 1)(small.model, *files), subject, style, seeds), subject, style)
        plain = routed(parse_policy("recommended")[0])(small.model, *files)
        add("live recommended", small.sample(plain, subject, style, seeds), subject, style)
        live = routed(policy, refinement=refinement)(small.model, *files)
        samples = small.sample(live, subject, style, seeds)
        add(f"live {options.policy}", samples, subject, style)
        for label, (step, rank) in kinds.items():
            model, sizes[label] = baked(small, live, samples, step, rank)
            add(label, small.sample(model, subject, style, seeds), subject, style)
    print(HEADER)
    for label, made in pictures.items():
        size = f"{sizes[label]:.1f} MB" if label in sizes else ""
        print(row(label, Result.joined(made, scores[label]), 1), size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet({label: torch.stack([batch[0] for batch in made]) for label, made in pictures.items()}, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
