"""Long work tells core how far it is, and the stop button ends it; sampling is core's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
import torch

from comfy_server import ComfyServer, WorkflowError
from lora_conductor.host.baking import BakeSettings, bake
from lora_conductor.host.fusing import load_loras
from lora_conductor.host.fusing.calibration import calibrated
from lora_conductor.host.loras import LoraChoice
from lora_conductor.host.loras.file import _read_cached

from .. import tiny
from ..workflows import STYLE, SUBJECT, Workflow, guidance_world, guided, ksampler, loader, node, router, sampled, world

CHOICES = [LoraChoice(SUBJECT, "subject", 1.0, 1.0), LoraChoice(STYLE, "style", 1.0, 1.0)]
Heard = list[tuple[int, int]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """(done, of how many) as core's own hook gets them; the work may not go on once the stop button is pressed."""
    told: Heard = []
    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: told.append((value, total)))
    yield told
    comfy.utils.set_progress_bar_global_hook(before)
    comfy.model_management.interrupt_current_processing(False)


def read() -> Any:
    _read_cached.cache_clear()
    return load_loras(tiny.world_flux(), None, CHOICES)


def calibrate() -> Any:
    model, _, _ = load_loras(tiny.world_flux(), None, CHOICES)
    latent = tiny.latent(model)
    prompt = [[torch.zeros(1, 4, 256), {"pooled_output": torch.zeros(1, 256)}]]
    return lambda: calibrated(model, {"subject": prompt, "style": prompt}, latent)


def bake_them() -> Any:
    model, _, _ = load_loras(tiny.world_flux(), None, CHOICES)
    latent = tiny.sample(model, steps=1)
    return lambda: bake(model, None, latent, BakeSettings())


@pytest.mark.parametrize("prepare", [lambda: read, calibrate, bake_them], ids=["reading", "calibration", "bake"])
def test_tells_how_far_it_is_and_stops(prepare: Callable[[], Callable[[], Any]], heard: Heard) -> None:
    work = prepare()
    heard.clear()
    work()
    assert heard and heard[-1][0] == heard[-1][1], f"the end is told: {heard}"
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: comfy.model_management.interrupt_current_processing())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        work()
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: None)
    work()


def comparing(steps: int) -> Workflow:
    graph = world(dual=loader(), vae=node("VAELoader", vae_name="emoji_taef1_vae_fp16.safetensors"))
    graph["compare"] = ksampler(
        "dual",
        class_type="ComparePolicies",
        vae=["vae", 0],
        policies="recommended, sum",
        seed=7,
        seeds=1,
        steps=steps,
    )
    return graph | {"look": node("PreviewImage", images=["compare", 0])}


@pytest.mark.parametrize("what", ["routed sampling", "guided sampling", "compare"])
def test_sampling_tells_how_far_it_is_and_stops(server: ComfyServer, what: str) -> None:
    def graph(steps: int) -> Workflow:
        if what == "compare":
            return comparing(steps)
        if what == "guided sampling":
            return guidance_world(
                "emoji_clip.safetensors", "emoji_dino.safetensors", **guided("a", steps=steps, seed=92)
            )
        return world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed", steps=steps, seed=91))

    done: set[int] = set()

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress":
            done.add(data["value"])

    server.queue(graph(8), timeout=300, on_event=watch)
    assert {1, 8} <= done
    stopped = False

    def stop(kind: str, data: dict[str, Any]) -> None:
        nonlocal stopped
        if kind == "progress" and not stopped:
            stopped = True
            server.interrupt()

    with pytest.raises(WorkflowError, match="interrupted"):
        server.queue(graph(500), timeout=120, on_event=stop)
