"""Train LoRAs of the small world, as anybody would: one subject from two drawings, or one style from 120 subjects.

    python -m benchmarks.emoji.world.loras subject penguin frog --world FOLDER_WITH_emoji64.npz --out FOLDER
    python -m benchmarks.emoji.world.loras style openmoji --world FOLDER_WITH_emoji64.npz --out FOLDER
    python -m benchmarks.emoji.world.loras subject fox --world-kind distilled-own --world FOLDER --out FOLDER

A subject is learned from its noto and twemoji drawings, under its trigger token and those styles' own tokens; it is
never seen in a held-out style. A style is learned from `style_lora_subjects.json`, none of which is held out. ComfyUI's
own model class and what the model itself learned to predict, AdamW with linear decay; one to two minutes of one core
each. Where guidance is an input of the model, it is 1 while a LoRA learns, as in trainers for FLUX-dev. Files have
kohya's keys and float16 weights; the UNet's have its convolutions, too (LoCon).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from repo_paths import ASSETS

from ...host import enter_host
from . import files
from .augment import crop
from .kinds import DISTILLED, add_option
from .objectives import OBJECTIVES
from .pictures import Pictures, load_pictures
from .small_world import SmallWorld
from .splits import SUBJECT_STYLES

STEPS = {"subject": 150, "style": 260}
BATCH = {"subject": 16, "style": 32}
RATE = {"subject": 1.7e-3, "style": 1.5e-3}
COPIES = {"subject": 64, "style": 4}
"""Of each picture, encoded once: encoding anew at every step would take longer than the step."""
BLOCKS = re.compile(r"blocks\.|middle_block\.")


@dataclass(frozen=True)
class Sample:
    """A picture [3, 64, 64] in [0, 1] and the tokens that describe it."""

    picture: Tensor
    tokens: tuple[str, ...]


def subject_samples(pictures: Pictures, small: SmallWorld, subject: str) -> list[Sample]:
    """The drawings that a subject is learned from."""
    trigger = small.prompt_tokens(subject, None)[2:]
    return [Sample(pictures.picture(subject, style), ("<bos>", f"style:{style}", *trigger)) for style in SUBJECT_STYLES]


def style_samples(pictures: Pictures, small: SmallWorld, style: str, subjects: list[str]) -> list[Sample]:
    """The drawings that a style is learned from."""
    trigger = small.style_token(style)
    found = []
    for subject in subjects:
        try:
            picture = pictures.picture(subject, style)
        except KeyError:
            continue
        found.append(Sample(picture, ("<bos>", trigger, f"subject:{subject}", small.class_token(subject))))
    return found


def samples_of(pictures: Pictures, small: SmallWorld, role: str, name: str) -> list[Sample]:
    """The drawings that a LoRA is learned from."""
    if role == "subject":
        return subject_samples(pictures, small, name)
    subjects = json.loads(small.file(files.STYLE_SUBJECTS).read_text(encoding="utf-8"))
    return style_samples(pictures, small, name, subjects)


class Branch(nn.Module):
    """One layer's LoRA, added to its output by a hook; a convolution's is LoCon: down by its kernel, up by 1 x 1."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        out, *into = layer.weight.shape
        self.down = nn.Parameter(torch.randn(rank, *into) * math.prod(into) ** -0.5)
        self.up = nn.Parameter(torch.zeros(out, rank, *([1] * (len(into) - 1))))
        layer.register_forward_hook(self)

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            hidden = functional.conv2d(inputs[0], self.down, None, layer.stride, layer.padding)
            return output + functional.conv2d(hidden, self.up)
        return output + functional.linear(functional.linear(inputs[0], self.down), self.up)


Reach = Callable[[str, nn.Module], int]
"""How many of a layer's outputs, the first ones, a LoRA may change; 0: it has no part there."""


def branches(model: nn.Module, rank: int, reach: Reach | None = None) -> dict[str, Branch]:
    """A LoRA of alpha = rank on every projection and convolution of the blocks, by kohya's name.

    The model is frozen, and earlier branches are taken off it. reach: of the whole layer if None.
    """
    model.requires_grad_(False)
    found = {}
    for name, module in model.named_modules():
        module._forward_hooks.clear()
        part = name.rpartition(".")[2]
        has_weight = isinstance(module, nn.Linear | nn.Conv2d)
        if has_weight and BLOCKS.search(name) and "mod" not in name and part != "lin":
            outputs = len(module.weight) if reach is None else reach(name, module)
            if outputs:
                found[f"lora_unet_{name.replace('.', '_')}"] = branch = Branch(module, rank)
                if outputs < len(branch.up):
                    within = (torch.arange(len(branch.up)) < outputs).view(-1, *[1] * (branch.up.ndim - 1))
                    branch.up.register_hook(lambda g, within=within: g * within)
    return found


def encoded(small: SmallWorld, samples: list[Sample], copies: int) -> Tensor:
    """Latents [copies, samples, 16, 8, 8] of the pictures, each slightly moved and resized in its own way."""
    pictures = torch.stack([sample.picture for sample in samples])
    with torch.inference_mode():
        made = [small.encode(crop(pictures, (0.97, 1.05), flip=False)) for _ in range(copies)]
        latents = small.model.model.process_latent_in(torch.stack(made))
    return latents.clone()


def batches(
    latents: Tensor, samples: list[Sample], count: int, steps: int
) -> Iterator[tuple[Tensor, list[tuple[str, ...]]]]:
    """Random pictures' latents [count, 16, 8, 8] with their tokens; one in ten with a style of no name."""
    for _ in range(steps):
        chosen, copy = torch.randint(0, len(samples), (count,)), torch.randint(0, len(latents), (count,))
        tokens = [samples[i].tokens for i in chosen.tolist()]
        yield latents[copy, chosen], [t if float(torch.rand(())) > 0.1 else (t[0], "<null>", *t[2:]) for t in tokens]


def fit(lora: dict[str, Branch], rate: float, steps: int, loss_of: Callable[[], Tensor]) -> dict[str, Branch]:
    """The branches after that many steps of AdamW with linear decay.

    Args:
        rate: at the start.
        loss_of: the loss of the model they are on, on a new batch.
    """
    from lora_conductor.host.vision import gradients_enabled, overwriting_allowed

    parameters = [p for branch in lora.values() for p in branch.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    start, mean = time.monotonic(), 0.0
    for step in range(steps):
        with gradients_enabled(), overwriting_allowed():
            loss = loss_of()
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        decay.step()
        mean += (loss.item() - mean) * max(0.05, 1 / (step + 1))
        if step % 20 == 19:
            print(f"  step {step + 1}/{steps}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return lora


def train(
    small: SmallWorld,
    samples: list[Sample],
    role: str,
    rank: int,
    seed: int = 0,
    steps: int | None = None,
    reach: Reach | None = None,
) -> dict[str, Branch]:
    """A LoRA for the world's model. steps: other than the usual ones; reach: as of `branches`."""
    torch.manual_seed(seed)
    steps = steps or STEPS[role]
    lora, objective = branches(small.model.model.diffusion_model, rank, reach), OBJECTIVES[small.kind.predicts]
    drawn = batches(encoded(small, samples, COPIES[role]), samples, BATCH[role], steps)

    def loss_of() -> Tensor:
        x0, tokens = next(drawn)
        conditions = [small.conditioning(each)[0] for each in tokens]
        context = torch.cat([c for c, _ in conditions])
        pooled = torch.cat([extra["pooled_output"] for _, extra in conditions])
        level, noise = objective.levels(len(x0)), torch.randn_like(x0)
        predicted = small.predict(objective.noised(x0, noise, level), level, context, pooled)
        return objective.loss(predicted, x0, noise, level)

    return fit(lora, RATE[role], steps, loss_of)


def save(lora: dict[str, Branch], rank: int, path: Path) -> None:
    """Write kohya's format, float16."""
    tensors: dict[str, Any] = {}
    for name, branch in lora.items():
        tensors[f"{name}.lora_down.weight"] = branch.down.detach().half().contiguous()
        tensors[f"{name}.lora_up.weight"] = branch.up.detach().half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"ss_network_alpha": f"{rank:.1f}", "ss_network_dim": str(rank)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=("subject", "style"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--world", type=Path, required=True, help="folder with emoji64.npz")
    parser.add_argument("--out", type=Path, default=ASSETS / "loras")
    add_option(parser)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="fewer or more than usual")
    options = parser.parse_args()
    enter_host()
    if options.kind is DISTILLED:
        parser.error("a LoRA that is trained on the distilled model is of the world distilled-own")
    small, pictures = SmallWorld(options.world, options.kind), load_pictures(options.world)
    for name in options.names:
        print(f"{options.role} {name}", flush=True)
        samples = samples_of(pictures, small, options.role, name)
        lora = train(small, samples, options.role, options.rank, options.seed, options.steps)
        save(lora, options.rank, options.out / files.lora(options.role, name, options.kind.loras))


if __name__ == "__main__":
    main()
