"""What ``torch.compile`` makes of a model whose layers are routed: graphs, counted by its tracer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .counting import RANK
from .models import SHAPES, Shape, lora_of, model_of, sample

WHY = """
A routed layer is a graph's end: what it decides is kept for record, plan and map by plain Python, which a tracer would
compile anew for each layer and step. So it runs as written, between graphs; ComfyUI's own model is cut in many as it
is. Where every launch counts, freeze the decisions (`freeze_after`) at CFG 1, or merge: then no layer is routed."""
DEPTH = {"depth": 2, "depth_single_blocks": 4}


def graphs_of(shape: Shape, model: Any) -> int:
    """Into how many graphs a model call is cut, with core's *TorchCompileModel* on the model."""
    import torch
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    torch._dynamo.reset()
    counters.clear()
    sample(shape, compiled, 1, 1.0)
    return int(counters["stats"]["unique_graphs"])


def table() -> Iterator[str]:
    """As a page shows it, of a FLUX-shaped model of a few blocks."""
    import comfy.sd
    import comfy.utils
    import torch

    from lora_conductor.fusion.policies import RECOMMENDED
    from lora_conductor.host.fusing import attachment_of, fused, set_policy

    flux = SHAPES["FLUX"]
    shape = Shape(flux.family, flux.config | DEPTH, flux.latent, flux.channels, flux.has_lora)
    with tempfile.TemporaryDirectory() as folder:
        model = merged = model_of(shape, torch.float32)
        files = [lora_of(shape, model, Path(folder) / f"{i}.safetensors", RANK, i) for i in (1, 2)]
        for file in files:
            merged, _ = comfy.sd.load_lora_for_models(merged, None, comfy.utils.load_torch_file(str(file)), 1.0, 0)
        loaded = fused(model, *files)
        yield f"A FLUX-shaped model with {attachment_of(loaded).spec.shared_layers} routed layers, CFG 1.\n"
        yield "| | graphs |\n|---|---|"
        yield f"| merged by ComfyUI | {graphs_of(shape, merged)} |"
        yield f"| recommended | {graphs_of(shape, set_policy(loaded, RECOMMENDED))} |"
        yield WHY
