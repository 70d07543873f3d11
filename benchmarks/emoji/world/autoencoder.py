"""Train the small world's autoencoder: TAESD's shape, 16 channels, 64 px to 8 x 8.

    python -m benchmarks.emoji.world.autoencoder --world FOLDER_WITH_emoji64.npz

ComfyUI's own TAESD class, so that its stock VAE loader reads the file. Sees all pictures of the archive, held-out
subjects and styles too: it learns what drawings look like, not what is in them. Prints how well it does, in dB.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ...host import enter_host
from .files import ARCHIVE, AUTOENCODER
from .precision import autocast

# Many small batches: large ones learn far less from the same number of pictures.
STEPS, BATCH, RATE = 6000, 4, 9e-4
# FLUX's latent scale and shift: with them in the file, what the model sees are the encoder's own outputs.
SCALE, SHIFT = 0.3611, 0.1159


def fresh(channels: int = 16) -> Any:
    """ComfyUI's TAESD with random weights; every block starts as the identity."""
    from comfy.taesd.taesd import TAESD, Block

    net = TAESD(latent_channels=channels)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.conv[4].weight)
    for value, wanted in ((net.vae_scale, SCALE), (net.vae_shift, SHIFT)):
        value.requires_grad_(False).fill_(wanted)
    return net


def disturbed(images: Tensor) -> Tensor:
    """Mirrored and with other channels' colours, at random: images [B, 3, H, W]."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    order = torch.stack([torch.randperm(3) if torch.rand(()) < 0.5 else torch.arange(3) for _ in images])
    return images.gather(1, order[:, :, None, None].expand_as(images))


def gradient_gap(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """L1 distance between the slopes of two batches of pictures, at full, half and quarter size."""
    total = a.new_zeros(())
    for scale in range(scales):
        if scale:
            a, b = functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)
        for dim in (2, 3):
            total = total + functional.l1_loss(a.diff(dim=dim), b.diff(dim=dim))
    return total


def loss_of(net: Any, images: Tensor) -> Tensor:
    """How far a batch of pictures [B, 3, 64, 64] in [0, 1] is from what comes out again."""
    with autocast():
        latents = net.taesd_encoder(images.contiguous(memory_format=torch.channels_last))
        noisy = latents + torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * 0.12
        drawn = net.taesd_decoder(noisy)
    drawn, latents = drawn.float(), latents.float()
    # The decoder bends latents above 3 and the model wants them near 1.
    size = 0.02 * latents.square().mean()
    return (
        functional.l1_loss(drawn, images)
        + 2 * functional.mse_loss(drawn, images)
        + 0.5 * gradient_gap(drawn, images)
        + size
    )


def train(images: Tensor, steps: int, seed: int = 0) -> Any:
    """A trained TAESD. images: [N, 3, 64, 64] uint8."""
    torch.manual_seed(seed)
    net = fresh().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=RATE, weight_decay=1e-3)
    start, mean = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        batch = images[torch.randint(len(images), (BATCH,))].float() / 255
        loss = loss_of(net, disturbed(batch))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        mean += (loss.item() - mean) * max(0.05, 1 / (step + 1))
        if step % 200 == 199:
            print(f"  step {step + 1}/{steps}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return net.eval()


def save(net: Any, file: Path) -> None:
    """Write the weights as float16, scale and shift as float32."""
    tensors = {
        key: (value.half() if value.ndim else value.float()).contiguous(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)


def psnr(vae: Any, images: Tensor) -> float:
    """Mean over the pictures [N, 3, 64, 64] uint8, in dB, of ComfyUI's VAE."""
    values = []
    with torch.inference_mode():
        for batch in images.split(64):
            true = batch.float() / 255
            drawn = vae.decode(vae.encode(true.movedim(1, -1))).movedim(-1, 1).float().clamp(0, 1)
            values.append(-10 * (drawn - true).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10())
    return float(torch.cat(values).mean())


def load(file: Path) -> Any:
    """The file as ComfyUI's stock loader reads it."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help=f"folder with {ARCHIVE}")
    parser.add_argument("--out", type=Path, help="folder to write to; default: the world's")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    enter_host()
    with np.load(options.world / ARCHIVE, allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous()
    file = (options.out or options.world) / AUTOENCODER
    save(train(images, options.steps), file)
    print(f"  {file.name}: {psnr(load(file), images[::10]):.1f} dB over every tenth picture", flush=True)


if __name__ == "__main__":
    main()
