"""Train the small world's base model: a FLUX of 13.5 million parameters and the tokens it is prompted with.

    python -m benchmarks.emoji.world.base --world FOLDER_WITH_emoji64.npz_AND_THE_AUTOENCODER

ComfyUI's own Flux class with random weights; rectified flow (v = noise - x0) on the autoencoder's latents of the
training subjects in the training styles (`vocabulary.py`). A prompt is four tokens, <bos>, style, subject, class; some
are hidden behind a random trigger or behind <null>, so that triggers are words that can still mean anything. Muon
(Jordan et al. 2024) for the blocks' matrices, AdamW for the rest; the file holds an average over the last steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ...host import enter_host
from . import autoencoder
from .files import AUTOENCODER, MODEL, TOKENS, WORDS
from .loras import noise_levels
from .pictures import load_pictures
from .precision import autocast, faster_dtype

STATE, KEEP_EVERY = "base_training.pt", 100
STEPS, BATCH, AVERAGING = 3100, 128, 0.995
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


class Masters:
    """float32 weights of a network that computes in another dtype, their optimisers and their running average."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.weights = {name: p.detach().float().clone().requires_grad_() for name, p in net.named_parameters()}
        self.average = {name: w.detach().clone() for name, w in self.weights.items()}
        self.steps = 0
        matrices = [w for name, w in self.weights.items() if "blocks." in name and w.ndim == 2]
        tables = [self.weights["tok"], self.weights["pool"]]
        chosen = {id(w) for w in (*matrices, *tables)}
        rest = [w for w in self.weights.values() if id(w) not in chosen]
        muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": rest, "lr": RATE}, {"params": tables, "lr": RATE * TOKEN_FACTOR}]
        self.optimisers = [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]
        self._peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]

    def step(self, done: float) -> None:
        """Move the weights by the network's gradients. done: share of the training that is over."""
        for name, p in self.net.named_parameters():
            self.weights[name].grad = None if p.grad is None else p.grad.float()
            p.grad = None
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        factor = min(1.0, done / 0.02 + 0.02, 0.02 + (1 - done) / 0.4)
        for optimiser, peaks in zip(self.optimisers, self._peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimiser.step()
        self.steps += 1
        # A young average must not remember the random start.
        keep = min(AVERAGING, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                p.copy_(self.weights[name])
                self.average[name].lerp_(self.weights[name], 1 - keep)

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on."""
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        return {"weights": self.weights, "average": self.average, "steps": self.steps, "optimisers": optimisers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                self.weights[name].copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
                p.copy_(self.weights[name])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.steps = state["steps"]


def train(
    lessons: Lessons, steps: int, batch: int = BATCH, seed: int = 0, state: Path | None = None
) -> dict[str, Tensor]:
    """Averaged weights by parameter name of `Net`; prints the loss every 20 steps.

    state: file in which the training is kept every KEEP_EVERY steps; where it exists, it goes on from there.
    """
    from lora_conductor.host.vision import gradients_enabled, overwriting_allowed

    torch.manual_seed(seed)
    masters = Masters(Net(len(lessons.names), torch.float32))
    dtype = faster_dtype()
    net = masters.net.to(dtype)
    start, mean, first = time.monotonic(), 0.0, 0
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        masters.restore(kept["masters"])
        torch.set_rng_state(kept["random"])
        mean, first = kept["mean"], masters.steps
        print(f"  going on from step {first}", flush=True)
    for step in range(first, steps):
        x0, ids = lessons.batch(batch)
        sigma, noise = noise_levels(batch), torch.randn_like(x0)
        at = sigma[:, None, None, None]
        with gradients_enabled(), overwriting_allowed():
            predicted = net(x0 * (1 - at) + noise * at, sigma, ids)
            loss = functional.mse_loss(predicted.float(), noise - x0)
            loss.backward()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        masters.step((step + 1) / steps)
        mean += (loss.item() - mean) * max(0.05, 1 / (step + 1))
        if step % 20 == 19 or step == steps - 1:
            print(f"  step {step + 1}/{steps}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
        if state is not None and (step + 1) % KEEP_EVERY == 0:
            part = state.with_suffix(".part")
            torch.save({"masters": masters.state(), "random": torch.get_rng_state(), "mean": mean}, part)
            os.replace(part, state)
    return masters.average


def packed(value: Tensor) -> Tensor:
    """As it is kept: matrices in FP8 (E4M3), all else in float16."""
    return value.to(torch.float8_e4m3fn if value.ndim == 2 else torch.float16).contiguous()


def save(weights: dict[str, Tensor], names: list[str], folder: Path) -> None:
    """Write the model with FLUX's keys, packed, and the tokens, float16."""
    model = {
        # FLUX's files say scale where ComfyUI's newer modules say weight.
        name.removeprefix("flux.").replace("_norm.weight", "_norm.scale"): packed(value)
        for name, value in weights.items()
        if name.startswith("flux.")
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weights[name].half() for name in ("tok", "pool")}, folder / TOKENS, {"vocab": json.dumps(names)})
    save_file(model, folder / MODEL, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder with the pictures and the autoencoder")
    parser.add_argument("--out", type=Path, help="folder to write to; default: the world's")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    enter_host()
    lessons = Lessons.read(options.world, autoencoder.load(options.world / AUTOENCODER))
    print(f"  {len(lessons.ids)} pictures, latents' standard deviation {lessons.latents.std():.2f}", flush=True)
    out = options.out or options.world
    out.mkdir(parents=True, exist_ok=True)
    state = out / STATE
    save(train(lessons, options.steps, state=state), lessons.names, out)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
