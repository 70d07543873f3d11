"""ComparePolicies in the running ComfyUI: every cell is the picture KSampler makes, and the best plan replays it."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from comfy_server import ComfyServer, WorkflowError
from lora_conductor.fusion.plan import Plan
from lora_conductor.host.compare import Cell, Judge, best_of, policies_named
from lora_conductor.host.compare_picture import CAPTION, GAP, LEAST, LEFT, TOP, comparison_picture
from lora_conductor.host.errors import ConductorError

from .workflows import Workflow, ksampler, latent, loader, node, router, run, sampled, world


def cell(policy: str, seed: int, scores: dict[str, float], share: float | None, grey: float = 0.5) -> Cell:
    plan = Plan({"policy": policy}, (), {}, (), (), ())
    return Cell(policy, seed, torch.full((8, 8, 3), grey), scores, share, plan)


def test_best_is_the_most_alike_or_without_references_the_most_even() -> None:
    alike = [cell("a", 1, {"subject": 0.5, "style": 0.9}, 0.5), cell("b", 1, {"subject": 0.8, "style": 0.7}, 0.9)]
    assert best_of(alike) is alike[1]
    even = [cell("a", 1, {}, 0.9), cell("b", 1, {}, 0.55), cell("sum", 1, {}, None)]
    assert best_of(even) is even[1]


def test_grid_has_every_cell_in_its_place_and_frames_the_best() -> None:
    cells = [cell(p, s, {}, 0.5, (i * 2 + s) / 10) for i, p in enumerate("ab") for s in (1, 2, 3)]
    picture = comparison_picture(cells, cells[4])[0]
    assert picture.shape == (TOP + 2 * (LEAST + CAPTION), LEFT + 3 * (LEAST + GAP), 3)
    for i, one in enumerate(cells):
        y, x = TOP + i // 3 * (LEAST + CAPTION), LEFT + i % 3 * (LEAST + GAP)
        middle = picture[y + LEAST // 2, x + LEAST // 2]
        assert torch.allclose(middle, one.image[0, 0], atol=1 / 255)
        assert torch.allclose(picture[y + 1, x + 1], one.image[0, 0], atol=1 / 255) == (i != 4)


@pytest.mark.parametrize("names", ["", "sum, nonsense", "ssr_merge"])
def test_unknown_policies_are_refused(names: str) -> None:
    with pytest.raises(ConductorError, match="policies"):
        policies_named(names)


def test_a_reference_without_an_encoder_is_refused() -> None:
    with pytest.raises(ConductorError, match="style_image"):
        Judge({"subject": None, "style": torch.zeros(1, 8, 8, 3)}, None, object())


def comparison(**more: Any) -> dict[str, Any]:
    policies = "sum, kl_soft\nrecommended"
    return ksampler("dual", class_type="ComparePolicies", vae=["vae", 0], policies=policies, seeds=2, **more)


def graph(**more: Any) -> Workflow:
    return world(
        vae=node("VAELoader", vae_name="emoji_taef1_vae_fp16.safetensors"),
        dual=loader(),
        show=node("PreviewImage", images=["compare", 0]),
        scores=node("PreviewAny", source=["compare", 1]),
        **more,
    )


def test_cells_are_ksampler_s_and_the_best_plan_replays(server: ComfyServer) -> None:
    replay = router("recommended")
    replay["inputs"]["plan"] = ["compare", 2]
    outputs = run(server, graph(compare=comparison(), replay=replay, **sampled("replayed", "replay", seed=2)))
    rows = json.loads(outputs["scores"]["text"][0])
    assert [(row["policy"], row["seed"]) for row in rows] == [
        (policy, seed) for policy in ("sum", "kl_soft", "recommended") for seed in (1, 2)
    ]
    assert [row["subject_share"] is None for row in rows] == [True, True, False, False, False, False]
    assert sum(row["best"] for row in rows) == 1
    picture = Image.open(BytesIO(server.view(outputs["show"]["images"][0])))
    assert picture.size == (LEFT + 2 * (LEAST + GAP), TOP + 3 * (LEAST + CAPTION))
    best = next(row for row in rows if row["best"])
    again = graph(compare=comparison(), replay=replay, best=router(best["policy"]))
    again |= sampled("best", "best", seed=best["seed"]) | sampled("replayed", "replay", seed=best["seed"])
    outputs = run(server, again)
    assert torch.equal(latent(server, outputs, "best"), latent(server, outputs, "replayed"))


def test_references_score_the_cells(server: ComfyServer) -> None:
    pictures = {
        "subject": node("LoadImage", image="reference_fox_twemoji.png"),
        "style": node("LoadImage", image="style_openmoji_koala.png"),
        "clip": node("MetricEncoderLoader", encoder_name="emoji_clip.safetensors", library="auto", model_name=""),
        "dino": node("MetricEncoderLoader", encoder_name="emoji_dino.safetensors", library="auto", model_name=""),
    }
    judged = comparison(
        subject_image=["subject", 0], style_image=["style", 0], clip_encoder=["clip", 0], dino_encoder=["dino", 0]
    )
    rows = json.loads(run(server, graph(compare=judged, **pictures))["scores"]["text"][0])
    means = [sum(row["scores"].values()) / 2 for row in rows]
    assert all(set(row["scores"]) == {"subject", "style"} and min(row["scores"].values()) >= -1 for row in rows)
    assert len(set(means)) == len(means) and rows[means.index(max(means))]["best"]


def test_a_model_without_our_loras_is_refused(server: ComfyServer) -> None:
    bare = comparison()
    bare["inputs"]["model"] = ["model", 0]
    with pytest.raises(WorkflowError, match="ComparePolicies .*carries no LoRAs"):
        run(server, graph(compare=bare))
