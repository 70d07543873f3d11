"""Train the small world's base model: a FLUX of 13.5 million parameters and the tokens it is prompted with.

    python -m benchmarks.emoji.world.base --world FOLDER_WITH_emoji64.npz_AND_THE_AUTOENCODER

ComfyUI's own Flux class with random weights; rectified flow (v = noise - x0) on the autoencoder's latents of the
training subjects in the training styles (`vocabulary.py`). A prompt is four tokens, <bos>, style, subject, class; some
are hidden behind a random trigger or behind <null>, so that triggers are words that can still mean anything. Muon
(Jordan et al. 2024) for the blocks' matrices, AdamW for the rest; the file holds an average over the last steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import autoencoder
from .files import AUTOENCODER, MODEL, TOKENS, WORDS
from .muon import Muon
from .objectives import OBJECTIVES, Objective
from .pictures import load_pictures
from .precision import autocast
from .training import Masters, Weights, command, fit

STATE = "base_training.pt"
STEPS, BATCH = 3100, 128
RATE, MUON_RATE, TOKEN_FACTOR = 1e-3, 2e-3, 3.0
WIDTH = 256
SHAPE: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": WIDTH,
    "context_in_dim": WIDTH,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": WIDTH // 128,
    "depth": 3,
    "depth_single_blocks": 6,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}
"""As ComfyUI detects FLUX: heads of 128."""
HIDE_SUBJECT, HIDE_STYLE, HIDE_CLASS, HIDE_ALL = 0.08, 0.08, 0.05, 0.1


class Net(nn.Module):
    """The model and its two tables of tokens, tok (context) and pool (the pooled vector)."""

    def __init__(self, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        import comfy.ops
        from comfy.ldm.flux.model import Flux

        self.flux = Flux(dtype=dtype, operations=comfy.ops.disable_weight_init, **SHAPE)
        self.tok = nn.Parameter(torch.randn(tokens, WIDTH, dtype=dtype))
        self.pool = nn.Parameter(torch.randn(tokens, WIDTH, dtype=dtype))
        for module in self.flux.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
        # As diffusion transformers start: every block adds nothing, the output is zero (Peebles and Xie 2023).
        for name, module in self.flux.named_modules():
            if name.endswith(("_mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """x [B, 16, 8, 8], sigma [B], ids [B, 4] -> v [B, 16, 8, 8], in the weights' dtype."""
        dtype = self.tok.dtype
        context, pooled = self.tok[ids], self.pool[ids].mean(dim=1)
        return self.flux(x.to(dtype), sigma.to(dtype), context, pooled, None, transformer_options={})


@dataclass(frozen=True)
class Lessons:
    """latents [N, 16, 8, 8]; ids [N, 4]: <bos>, style, subject, class; names: all tokens."""

    latents: Tensor
    ids: Tensor
    names: list[str]

    @classmethod
    def read(cls, folder: Path, vae: Any) -> Lessons:
        """Every training subject in every training style."""
        words = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        index = {name: i for i, name in enumerate(words["tokens"])}
        styles = [name.partition(":")[2] for name in words["tokens"] if name.startswith("style:")]
        pictures = load_pictures(folder)
        rows = torch.nonzero(pictures.where(words["train_subjects"], styles))[:, 0]
        ids = []
        for row in rows.tolist():
            subject = pictures.subject_names[int(pictures.subject[row])]
            style = pictures.style_names[int(pictures.style[row])]
            described = (f"style:{style}", f"subject:{subject}", f"class:{words['class_of'][subject]}")
            ids.append([index["<bos>"], *(index[name] for name in described)])
        # As precise as what is added to it, noise, and several times as fast.
        with torch.inference_mode(), autocast():
            images = (pictures.images[chosen].float() / 255 for chosen in rows.split(64))
            latents = torch.cat([vae.encode(batch.movedim(1, -1)) for batch in images])
        own = (latents - autoencoder.SHIFT) * autoencoder.SCALE
        return cls(own.clone(), torch.tensor(ids), words["tokens"])

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Random latents and their prompts, some words of them hidden."""
        rows = torch.randint(len(self.ids), (count,))
        ids = self.ids[rows].clone()
        for column, share, prefix in ((2, HIDE_SUBJECT, "<sks_subject"), (1, HIDE_STYLE, "<sks_style")):
            triggers = torch.tensor([i for i, name in enumerate(self.names) if name.startswith(prefix)])
            hidden = torch.rand(count) < share
            ids[hidden, column] = triggers[torch.randint(len(triggers), (int(hidden.sum()),))]
        null = self.names.index("<null>")
        ids[torch.rand(count) < HIDE_CLASS, 3] = null
        ids[torch.rand(count) < HIDE_ALL] = null
        return self.latents[rows], ids


def optimisers(weights: Weights) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    matrices = [w for name, w in weights.items() if "blocks." in name and w.ndim == 2]
    tables = [weights["tok"], weights["pool"]]
    chosen = {id(w) for w in (*matrices, *tables)}
    rest = [w for w in weights.values() if id(w) not in chosen]
    groups = [{"params": rest, "lr": RATE}, {"params": tables, "lr": RATE * TOKEN_FACTOR}]
    return [Muon(matrices, lr=MUON_RATE), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]


def learned(
    net: nn.Module,
    optimisers: Callable[[Weights], Sequence[torch.optim.Optimizer]],
    objective: Objective,
    lessons: Lessons,
    steps: int,
    batch: int,
    state: Path | None,
) -> Weights:
    """Averaged weights of a network ``(x, level, ids)`` by parameter name. optimisers, state: as of `training`."""

    def loss_of() -> Tensor:
        x0, ids = lessons.batch(batch)
        level, noise = objective.levels(batch), torch.randn_like(x0)
        return objective.loss(net(objective.noised(x0, noise, level), level, ids), x0, noise, level)

    return fit(Masters(net, optimisers), loss_of, steps, state)


def train(lessons: Lessons, steps: int, batch: int = BATCH, seed: int = 0, state: Path | None = None) -> Weights:
    """Averaged weights by parameter name of `Net`. state: as of `training.fit`."""
    torch.manual_seed(seed)
    net = Net(len(lessons.names), torch.float32)
    return learned(net, optimisers, OBJECTIVES["flow"], lessons, steps, batch, state)


def packed(value: Tensor) -> Tensor:
    """As it is kept: matrices in FP8 (E4M3), all else in float16."""
    return value.to(torch.float8_e4m3fn if value.ndim == 2 else torch.float16).contiguous()


def save_model(flux: Weights, file: Path) -> None:
    """Write a model's weights with FLUX's keys, packed."""
    # FLUX's files say scale where ComfyUI's newer modules say weight.
    named = {name.replace("_norm.weight", "_norm.scale"): packed(value) for name, value in flux.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, file, {"format": "pt"})


def save(weights: Weights, names: list[str], folder: Path) -> None:
    """Write the model, and the tokens in float16."""
    prefix = "flux."
    save_model({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}, folder / MODEL)
    save_tokens({name: weights[name] for name in ("tok", "pool")}, names, folder / TOKENS)


def save_tokens(tables: Weights, names: list[str], file: Path) -> None:
    """Write tables of tokens in float16. names: of the tokens."""
    save_file({name: table.half() for name, table in tables.items()}, file, {"vocab": json.dumps(names)})


def make(world: Path, out: Path, steps: int, state: Path) -> None:
    """Train and write the model of a folder with pictures and autoencoder. state: as of `training.fit`."""
    lessons = Lessons.read(world, autoencoder.load(world / AUTOENCODER))
    print(f"  {len(lessons.ids)} pictures, latents' standard deviation {lessons.latents.std():.2f}", flush=True)
    save(train(lessons, steps, state=state), lessons.names, out)


if __name__ == "__main__":
    command(__doc__, STEPS, STATE, make)
