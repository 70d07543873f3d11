"""A full-size SD1.5 UNet with random weights, and how long sampling with it takes: for the speed benchmarks."""

from __future__ import annotations

import time
from dataclasses import dataclass


def sd15_unet(dtype):
    """A full-size SD1.5 UNet with random weights, on a ModelPatcher."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = dict(
        comfy.supported_models.SD15.unet_config,
        image_size=32,
        in_channels=4,
        out_channels=4,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
        num_heads=8,
        use_spatial_transformer=True,
        legacy=False,
        dtype=dtype,
    )
    model_config = comfy.supported_models.SD15(config)
    model_config.unet_config = config
    model_config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = model_config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
            else:
                p.fill_(float(name.endswith("weight")))
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


@dataclass(frozen=True)
class Timing:
    """Of a sampling run. steps: seconds on one clock when each ended; cpu_steps: the same in seconds of all CPU
    threads, which other work on the machine hardly disturbs. total, cpu: of the whole run, loading and patching
    included."""

    steps: list[float]
    cpu_steps: list[float]
    total: float
    cpu: float


def sample(model, steps: int, size: int) -> Timing:
    """Sample one picture of `size` pixels with CFG, by Euler, through core."""
    import comfy.sample
    import torch

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    stamps: list[tuple[float, float]] = []
    latent = torch.zeros(1, 4, size // 8, size // 8)
    cond = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    noise = comfy.sample.prepare_noise(latent, 0)
    start, cpu = now(), time.process_time()
    with torch.inference_mode():
        comfy.sample.sample(
            model,
            noise,
            steps,
            7.0,
            "euler",
            "normal",
            cond,
            cond,
            latent,
            callback=lambda *_: stamps.append((now(), time.process_time())),
            disable_pbar=True,
            seed=0,
        )
    return Timing([s[0] for s in stamps], [s[1] for s in stamps], now() - start, time.process_time() - cpu)
