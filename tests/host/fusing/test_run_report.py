"""RoutingReport's picture and text: what they show is what the record says."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from comfy_server import ComfyServer
from lora_conductor.fusion.records import RoutingRecord, empty_record
from lora_conductor.host.core import pack_version
from lora_conductor.host.fusing.report import seeds_of
from lora_conductor.host.maps.picture import BOTTOM, HEIGHT, LEFT, STYLE, SUBJECT, TOP, UNKNOWN, WIDTH, routing_picture

from ..workflows import STYLE as STYLE_FILE
from ..workflows import SUBJECT as SUBJECT_FILE
from ..workflows import loader, node, router, run, sampled, world

HEADER: dict[str, Any] = {"policy": {"policy": "paper"}, "loras": (), "refinement": {}}


def test_picture_has_the_winner_s_colour_in_each_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    won = torch.rand(8, 5, generator=generator).round().double()
    weights = torch.stack([won, 1 - won])
    weights[:, 3, 2] = torch.nan
    names = tuple(f"diffusion_model.double_blocks.{i // 4}.l{i}" for i in range(8))
    record = RoutingRecord(**HEADER, sigmas=tuple(range(6)), layers=names, scores=weights, weights=weights)
    picture = (routing_picture(record)[0] * 255).round().int()
    assert picture.shape == (HEIGHT, WIDTH, 3)
    width, height = (WIDTH - LEFT - 20) / 5, (HEIGHT - TOP - BOTTOM) / 8
    for layer in range(8):
        for step in range(5):
            found = tuple(picture[int(TOP + (layer + 0.5) * height), int(LEFT + (step + 0.5) * width)].tolist())
            expected = UNKNOWN if (layer, step) == (3, 2) else SUBJECT if won[layer, step] else STYLE
            assert found == expected, (layer, step)


def test_nothing_routed_is_a_picture_too() -> None:
    picture = routing_picture(empty_record(HEADER))
    assert picture.shape == (1, HEIGHT, WIDTH, 3) and picture.min() < 0.5 < picture.max()


def test_seeds_are_those_of_the_latent_s_own_samplers() -> None:
    prompt = {
        "report": node("RoutingReport", latent=["second", 0], model=["m", 0]),
        "second": node("KSampler", seed=5, latent_image=["first", 0]),
        "first": node("KSamplerAdvanced", noise_seed=["numbers", 0], latent_image=["empty", 0]),
        "numbers": node("PrimitiveInt", value=3),
        "empty": node("EmptyLatentImage"),
        "other": node("KSampler", seed=9),
    }
    assert seeds_of(prompt, "report") == [("KSampler", 5)]
    prompt["first"]["inputs"]["noise_seed"] = 7
    assert seeds_of(prompt, "report") == [("KSampler", 5), ("KSamplerAdvanced", 7)]


@pytest.mark.parametrize("policy", ["kl_soft", "sum"])
def test_report_says_what_ran(server: ComfyServer, policy: str) -> None:
    graph = world(dual=loader(), routed=router(policy), **sampled("a", "routed", report=True, seed=4711))
    graph["show"] = node("PreviewImage", images=["a.report", 3])
    outputs = run(server, graph)
    (text,) = outputs["a.report"]["text"]
    for part in (SUBJECT_FILE, STYLE_FILE, "4711 (KSampler)", pack_version(), "torch", "MB of LoRA deltas", "sha256"):
        assert part in text, part
    assert "36 touched by both LoRAs, 0 by one alone" in text
    assert ("scoring and fusing" in text and "subject's share by block:" in text) == (policy == "kl_soft")
    picture = Image.open(BytesIO(server.view(outputs["show"]["images"][0])))
    assert picture.size == (WIDTH, HEIGHT)
