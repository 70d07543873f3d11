"""How long two LoRA files take until a model of SDXL's size can sample with them: ours, and core's own loader.

The model's weights are half precision and never looked at; the files have just been written, so that both find them in
the system's cache. Core's time has the patching of all weights in it, which ours does not need.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .models import SDXL, SHAPES, Shape, lora_of

RANKS = 16, 128
FULL_SIZE = SDXL | {"model_channels": 320, "context_dim": 2048, "num_heads": -1, "num_head_channels": 64}
FULL_SIZE |= {"adm_in_channels": 2816}


@dataclass(frozen=True)
class Loading:
    """Wall seconds.

    Attributes:
        first: with our loader.
        again: the same files once more, at other strengths.
        core: with core's.
        size: of both files, bytes.
    """

    first: float
    again: float
    core: float
    size: int


def loading(rank: int, shape: Shape | None = None) -> Loading:
    """Of two files of a rank on a model."""
    import comfy.sd
    import comfy.utils

    from lora_conductor.host.fusing import fused

    shape = shape or Shape("SDXL", FULL_SIZE, 128, 4, SHAPES["SDXL"].has_lora)
    with tempfile.TemporaryDirectory() as folder:
        model = _bare(shape)
        files = [lora_of(shape, model, Path(folder) / f"{i}.safetensors", rank, i, half=True) for i in (1, 2)]

        def core() -> None:
            patched = model
            for file in files:
                lora = comfy.utils.load_torch_file(str(file), safe_load=True)
                patched, _ = comfy.sd.load_lora_for_models(patched, None, lora, 1.0, 0.0)
            patched.patch_model()
            patched.unpatch_model()

        first, again, by_core = (
            _seconds(load)
            for load in (lambda: fused(model, *files), lambda: fused(model, *((file, 0.8) for file in files)), core)
        )
        return Loading(first, again, by_core, sum(file.stat().st_size for file in files))


def table() -> list[str]:
    """As a page shows it."""
    lines = [
        "Two files on a UNet of SDXL's size, half precision, on this machine's CPU: seconds until the model can sample "
        "(ComfyUI's loader: patching included). *Again* is with the same files at other strengths.\n",
        "| rank | both files, MB | ComfyUI's loader | this pack | of ComfyUI's | again | of ComfyUI's |",
        "|---|---|---|---|---|---|---|",
    ]
    for rank in RANKS:
        it = loading(rank)
        ours = (f"{seconds:.1f} | {seconds / it.core:.2f}" for seconds in (it.first, it.again))
        lines.append(f"| {rank} | {it.size / 1e6:.0f} | {it.core:.1f} | {' | '.join(ours)} |")
    return lines


def _seconds(function: Any) -> float:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        function()
    return time.perf_counter() - started


def _bare(shape: Shape) -> Any:
    """A ModelPatcher whose weights are whatever lies there."""
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = shape.config | {"dtype": torch.float16}
    family = getattr(comfy.supported_models, shape.family)(config)
    family.unet_config = config
    family.set_inference_dtype(torch.float16, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(family.get_model({}, device="cpu"), cpu, cpu)
