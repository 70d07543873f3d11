"""Train the small world's UNet: 9.8 million parameters of Stable Diffusion's make, which predict noise.

    python -m benchmarks.emoji.world.unet --world FOLDER_WITH_emoji64.npz

ComfyUI's own UNet class with random weights, on the same latents, pictures and prompts as the base (`base.py`), with a
table of tokens of its own: what a prompt says reaches it by cross-attention alone. It is sampled with classifier-free
guidance at scales of Stable Diffusion's kind.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .base import Lessons, learned, packed, save_tokens
from .files import UNET, UNET_TOKENS
from .muon import Muon
from .objectives import OBJECTIVES
from .small_unet import CONTEXT, SHAPE
from .small_world import SmallWorld
from .training import Weights, command

STATE = "unet_training.pt"
STEPS, BATCH, RATE, TOKEN_RATE, MUON_RATE = 1700, 96, 1e-3, 3e-3, 2e-3


class Net(nn.Module):
    """The model and its table of tokens."""

    def __init__(self, tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        import comfy.ops
        from comfy.ldm.modules.attention import SpatialTransformer
        from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

        self.unet = UNetModel(dtype=dtype, operations=comfy.ops.disable_weight_init, **SHAPE)
        self.tok = nn.Parameter(torch.randn(tokens, CONTEXT, dtype=dtype))
        for module in self.unet.modules():
            for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
                if isinstance(module, kind):
                    kind.reset_parameters(module)
        # As diffusion models start: every block adds nothing, the output is zero (Dhariwal and Nichol 2021).
        ends = [m.out_layers[-1] for m in self.unet.modules() if isinstance(m, ResBlock)]
        ends += [m.proj_out for m in self.unet.modules() if isinstance(m, SpatialTransformer)]
        for module in (*ends, self.unet.out[-1]):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, level: Tensor, ids: Tensor) -> Tensor:
        """x [B, 16, 8, 8], level [B], ids [B, 4] -> noise [B, 16, 8, 8], in the weights' dtype."""
        return self.unet(x.to(self.tok.dtype), level, self.tok[ids], transformer_options={})


def optimisers(weights: Weights) -> list[torch.optim.Optimizer]:
    """Muon for matrices and convolutions, AdamW for the rest: after 180 steps as far as AdamW alone after 300."""
    matrices = [w for name, w in weights.items() if w.ndim > 1 and name != "tok"]
    rest = [w for w in weights.values() if w.ndim == 1]
    groups = [{"params": rest, "lr": RATE}, {"params": [weights["tok"]], "lr": TOKEN_RATE}]
    return [Muon(matrices, lr=MUON_RATE), torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]


def train(lessons: Lessons, steps: int, batch: int = BATCH, seed: int = 0, state: Path | None = None) -> Weights:
    """Averaged weights by parameter name of `Net`. state: as of `training.fit`."""
    torch.manual_seed(seed)
    net = Net(len(lessons.names), torch.float32)
    return learned(net, optimisers, OBJECTIVES["noise"], lessons, steps, batch, state)


def save(weights: Weights, names: list[str], folder: Path) -> None:
    """Write the model, packed, and the tokens in float16."""
    from safetensors.torch import save_file

    prefix = "unet."
    model = {name.removeprefix(prefix): packed(w) for name, w in weights.items() if name.startswith(prefix)}
    save_file(model, folder / UNET, {"format": "pt"})
    save_tokens({"tok": weights["tok"]}, names, folder / UNET_TOKENS)


def make(world: Path, out: Path, steps: int, state: Path) -> None:
    """Train and write the model of a folder with pictures. state: as of `training.fit`."""
    lessons = Lessons.read(world, SmallWorld(world).vae)
    print(f"  {len(lessons.ids)} pictures, latents' standard deviation {lessons.latents.std():.2f}", flush=True)
    save(train(lessons, steps, state=state), lessons.names, out)


if __name__ == "__main__":
    command(__doc__, STEPS, STATE, make)
