"""Distil the small world's guidance into the model, as FLUX-dev has it: one pass a step, guidance as an input.

    python -m benchmarks.emoji.world.distilled --world FOLDER_WITH_emoji64.npz

The student is ComfyUI's Flux class with a guidance embedding, with the base's weights; the embedding's output layer is
zero, so that it begins as the base without guidance. Its target is what the frozen base predicts under classifier-free
guidance (Meng et al. 2023, stage one), at scales drawn anew for every picture; tokens are the base's.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Lessons, save_model
from .files import DISTILLED
from .objectives import OBJECTIVES
from .precision import autocast
from .small_world import SmallWorld
from .training import Masters, Weights, command, fit

STATE = "distilled_training.pt"
STEPS, BATCH, RATE, NEW_RATE = 1500, 32, 5e-4, 1e-3
SCALES = 1.0, 4.0
"""Of guidance, uniform; the base world is sampled at 2.5."""


class Prompted(nn.Module):
    """A Flux model with the tables of tokens it is prompted with, tok (context) and pool (the pooled vector)."""

    def __init__(self, flux: nn.Module, tok: Tensor, pool: Tensor) -> None:
        super().__init__()
        self.flux = flux
        self.register_buffer("tok", tok)
        self.register_buffer("pool", pool)

    def forward(self, x: Tensor, sigma: Tensor, ids: Tensor, guidance: Tensor | None = None) -> Tensor:
        """x [B, 16, 8, 8], sigma [B], ids [B, 4], guidance [B] -> v [B, 16, 8, 8], in the weights' dtype."""
        dtype, context, pooled = self.tok.dtype, self.tok[ids], self.pool[ids].mean(dim=1)
        # The scale stays float32: it is embedded as an angle of thousands of radians.
        return self.flux(x.to(dtype), sigma.to(dtype), context, pooled, guidance, transformer_options={})


def guided(base: Prompted, x: Tensor, sigma: Tensor, ids: Tensor, null: int, scale: Tensor) -> Tensor:
    """v_uncond + scale (v_cond - v_uncond) of a model, scale [B] (Ho and Salimans 2022). null: the empty token."""
    cond, uncond = base(x.repeat(2, 1, 1, 1), sigma.repeat(2), torch.cat([ids, torch.full_like(ids, null)])).chunk(2)
    return uncond + scale[:, None, None, None] * (cond - uncond)


def student(base: Any) -> nn.Module:
    """A trainable copy of a Flux model, with a guidance embedding that says nothing yet."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    shape = asdict(base.params) | {"guidance_embed": True}
    flux = Flux(dtype=torch.float32, operations=comfy.ops.disable_weight_init, **shape)
    embedding = flux.guidance_in
    for layer in (embedding.in_layer, embedding.out_layer):
        nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(embedding.in_layer.weight)
    nn.init.zeros_(embedding.out_layer.weight)
    flux.load_state_dict(base.state_dict() | {f"guidance_in.{k}": v for k, v in embedding.state_dict().items()})
    return flux.requires_grad_(True)


def optimisers(weights: Weights) -> list[torch.optim.Optimizer]:
    """AdamW, faster where weights are new."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, w in weights.items():
        groups["guidance_in" in name].append(w)
    rated = [{"params": groups[True], "lr": NEW_RATE}, {"params": groups[False], "lr": RATE}]
    return [torch.optim.AdamW(rated, betas=(0.9, 0.98), weight_decay=0.0)]


def train(
    small: SmallWorld, lessons: Lessons, steps: int, batch: int = BATCH, seed: int = 0, state: Path | None = None
) -> Weights:
    """Averaged weights of the student, by Flux's names. state: as of `training.fit`."""
    torch.manual_seed(seed)
    flux, tokens = small.model.model.diffusion_model, small.tables
    with torch.inference_mode(False):
        base, net = Prompted(flux.requires_grad_(False), *tokens), Prompted(student(flux), *tokens)
    null, flow = lessons.names.index("<null>"), OBJECTIVES["flow"]

    def loss_of() -> Tensor:
        x0, ids = lessons.batch(batch)
        sigma, scale = flow.levels(batch), torch.empty(batch).uniform_(*SCALES)
        x = flow.noised(x0, torch.randn_like(x0), sigma)
        with torch.no_grad(), autocast():
            wanted = guided(base, x, sigma, ids, null, scale)
        return functional.mse_loss(net(x, sigma, ids, scale).float(), wanted.float())

    weights = fit(Masters(net, optimisers), loss_of, steps, state)
    return {name.removeprefix("flux."): w for name, w in weights.items()}


def make(world: Path, out: Path, steps: int, state: Path) -> None:
    """Train and write the model of a folder with pictures; a base of its own if any. state: as of `training.fit`."""
    small = SmallWorld(world)
    lessons = Lessons.read(world, small.vae)
    save_model(train(small, lessons, steps, state=state), out / DISTILLED)


if __name__ == "__main__":
    command(__doc__, STEPS, STATE, make)
