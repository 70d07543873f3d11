"""The tests' workflows of the small world for tools that queue them too, and the one that touches every room."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from repo_paths import REPO


def _load() -> ModuleType:
    # By its path: a folder of tests is no package, and the repository must not be on sys.path beside ComfyUI's `nodes`.
    spec = importlib.util.spec_from_file_location("_world_workflows", REPO / "tests" / "host" / "workflows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


workflows = _load()
ENCODERS = ("emoji_clip.safetensors", "emoji_dino.safetensors")


def smoke(seed: int = 1) -> dict[str, Any]:
    """Loader, router, report, guided sampler, plan, bake, and core's own two loaders beside `sum`.

    Latents by the names "routed", "guided", "sum" and "core".
    """
    w = workflows
    plain = {"seed": seed, "steps": 3}
    return w.guidance_world(
        *ENCODERS,
        dual=w.loader(),
        router=w.router("kl_soft"),
        summing=w.router("sum"),
        one=w.stock("model", w.SUBJECT),
        both=w.stock("one", w.STYLE),
        **w.sampled("routed", "router", report=True, **plain),
        **w.sampled("sum", "summing", **plain),
        **w.sampled("core", "both", **plain),
        **w.guided("guided", model="router", guidance_every=1, **plain),
        plan=w.node(
            "SaveRoutingPlan", model=["router", 0], latent=["routed.sample", 0], filename_prefix="routing_plans/smoke"
        ),
        bake=baked("router", "routed", "loras/smoke"),
    )


def baked(model: str, sample: str, prefix: str) -> dict[str, Any]:
    """The bake node on what a sampler of ``workflows.sampled`` made."""
    inputs = {"steps": "average", "step": 1, "rank": 4, "dtype": "fp16", "filename_prefix": prefix}
    return workflows.node("BakeFusedLoRA", model=[model, 0], latent=[f"{sample}.sample", 0], **inputs)
