"""ComparePolicies in the running ComfyUI: every cell is the picture KSampler makes, and the best plan replays it."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import comfy.model_management
import folder_paths
import numpy
import pytest
import torch
from comfy_api.latest import io
from nodes import VAELoader
from PIL import Image

from comfy_server import ComfyServer, WorkflowError
from lora_conductor.fusion.records import Plan
from lora_conductor.fusion.routing import NAMED, Refinement, heeds, with_settings
from lora_conductor.host.comparing import Judge
from lora_conductor.host.comparing.axes import Setting, axis
from lora_conductor.host.comparing.grid import Cell, best_of, compare
from lora_conductor.host.comparing.picture import CAPTION, GAP, LEAST, LEFT, TOP, comparison_picture
from lora_conductor.host.core import ConductorError, SamplerCall
from lora_conductor.host.fusing import attachment_of, fused
from lora_conductor.nodes.compare import SAMPLING, comparable
from repo_paths import ASSETS

from .. import tiny
from ..workflows import STYLE, SUBJECT, Workflow, ksampler, latent, loader, node, router, run, sampled, world

NO_PLAN = Plan((), {}, {}, (), (), ())
VAE = "emoji_taef1_vae_fp16.safetensors"


def cell(policy: str, seed: int, scores: dict[str, float], share: float | None, grey: float = 0.5) -> Cell:
    row, column = Setting("policy", policy, policy), Setting("seed", seed, str(seed))
    return Cell(policy, seed, torch.full((8, 8, 3), grey), scores, share, NO_PLAN, row, column)


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


def test_labels_wider_than_a_picture_find_room() -> None:
    wide = Setting("sampler_name", "dpmpp_2m_sde_heun_gpu", "dpmpp_2m_sde_heun_gpu")
    cells = [replace(cell("sum", 1, {}, 0.5), row=wide, column=other) for other in (wide, Setting("cfg", 2.5, "2.5"))]
    width = comparison_picture(cells, cells[0]).shape[2]
    assert width > 2 * LEFT + 2 * (LEAST + GAP)


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("policy", "sum, kl_soft\nsum", ["sum", "kl_soft"]),
        ("seed", "18446744073709551615, 0", [18446744073709551615, 0]),
        ("steps", "2,\n 4,", [2, 4]),
        ("emphasis", "1, 2.5", [1.0, 2.5]),
        ("score", "policy's own, kl", ["policy's own", "kl"]),
        ("follow_cond", "true, false", [True, False]),
        ("policy", "sum\uff0cpaper\u3001Recommended", ["sum", "paper", "recommended"]),
        ("policy", "\uff53\uff55\uff4d\uff1bpaper", ["sum", "paper"]),
        ("cfg", "1,5; 2", [1.5, 2.0]),
        ("cfg", "1,5", [1.0, 5.0]),
        ("steps", "\uff14\uff1b\uff18", [4, 8]),
        ("follow_cond", "True; FALSE", [True, False]),
        ("follow_cond", "\u662f\uff0c\u5426", [True, False]),
        ("follow_cond", "Nein, ja", [False, True]),
        ("score", "Policy's own", ["policy's own"]),
    ],
)
def test_values_are_those_of_their_inputs(name: str, text: str, values: list[Any]) -> None:
    made = axis("rows", text, "row_values", comparable()[name])
    assert [setting.value for setting in made.settings] == values
    assert {type(setting.value) for setting in made.settings} == {type(value) for value in values}


@pytest.mark.parametrize(
    ("name", "text", "bad", "allowed"),
    [
        ("policy", "sum, nonsense", "nonsense", "recommended, sum"),
        ("policy", "ssr_merge", "ssr_merge", "recommended, sum"),
        ("steps", "4, 2.5", "2.5", "whole numbers from 1 to 10000"),
        ("cfg", "2, 101", "101", "numbers from 0.0 to 100.0"),
        ("emphasis", "nan", "nan", "numbers from 0.0 to 10.0"),
        ("sampler_name", "euler, eular", "eular", "euler"),
        ("granularity", "place", "place", "layer, head, token"),
        ("group_attention", "true, 1", "1", "false, true"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, text: str, bad: str, allowed: str) -> None:
    with pytest.raises(ConductorError, match=f"^row_values: there is no {name} '{bad}' .*{allowed}"):
        axis("rows", text, "row_values", comparable()[name])


def another(part: io.Input) -> Any:
    """A value that is not the input's default."""
    if isinstance(part, io.Combo.Input):
        return part.options[-1]
    if isinstance(part, io.Boolean.Input):
        return not part.default
    return part.min if part.default == part.max else part.max


def test_every_choice_changes_something() -> None:
    settings = {name: part for name, part in comparable().items() if name not in (*SAMPLING, "policy")}
    for name, part in settings.items():
        changes = {name: another(part)}
        heeding = [policy for policy in NAMED.values() if heeds(policy, name)]
        made = [with_settings(policy, Refinement(), changes) != (policy, Refinement()) for policy in heeding]
        assert any(made), name


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ConductorError, match=r"^row_values: the list is empty.* of denoise.* from 0\.0 to 1\.0"):
        axis("rows", " ,", "row_values", comparable()["denoise"])


def test_a_reference_without_an_encoder_is_refused() -> None:
    with pytest.raises(ConductorError, match="style_image"):
        Judge({"subject": None, "style": torch.zeros(1, 8, 8, 3)}, None, object())


class Troubled:
    """A comparison in this process, of a model whose n-th call ends as a test wants."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: dict[int, Any] = {}
        model = tiny.world_flux()
        paths = [folder_paths.get_full_path_or_raise("loras", name) for name in (SUBJECT, STYLE)]
        model = fused(model, *((path, 1.0) for path in paths))
        model.set_model_unet_function_wrapper(self._call)
        (vae,) = VAELoader().load_vae(VAE)
        samples = {"samples": torch.zeros(1, 16, 8, 8)}
        prompt, nothing = tiny.conditioning(model, 1), tiny.conditioning(model, 2)
        call = SamplerCall(1, 1, 1.0, "euler", "simple", prompt, nothing, samples)
        inputs = comparable()
        axes = axis("rows", "sum, kl_soft", "", inputs["policy"]), axis("columns", "1, 2", "", inputs["seed"])
        self._arguments = (model, *axes, call, vae)

    def _call(self, forward: Any, arguments: dict[str, Any]) -> torch.Tensor:
        self.calls += 1
        if self.calls in self.at:
            self.at.pop(self.calls)()
        return forward(arguments["input"], arguments["timestep"], **arguments["c"])

    def compare(self) -> list[Cell]:
        with torch.inference_mode():
            return compare(*self._arguments, Judge({"subject": None, "style": None}, None, None))


def fail() -> None:
    raise RuntimeError("no such picture")


def test_an_error_in_a_cell_leaves_the_others() -> None:
    trouble = Troubled()
    whole = trouble.compare()
    trouble.at = {trouble.calls + 2: fail}
    cells = trouble.compare()
    assert [one.error for one in cells] == ["", "no such picture", "", ""]
    for one, other in zip(whole, cells, strict=True):
        assert other.error or torch.equal(one.image, other.image)
    assert best_of(cells) is not cells[1] and comparison_picture(cells, best_of(cells)).shape[0] == 1
    trouble.at = {trouble.calls + i: fail for i in range(1, 5)}
    with pytest.raises(RuntimeError, match="no such picture"):
        trouble.compare()


def test_a_stopped_grid_goes_on_where_it_was() -> None:
    trouble = Troubled()
    whole = trouble.compare()
    trouble.at = {trouble.calls + 3: comfy.model_management.interrupt_current_processing}
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        trouble.compare()
    before = trouble.calls
    cells = trouble.compare()
    finished = 4 - (trouble.calls - before)
    assert finished in (2, 3) and all(torch.equal(a.image, b.image) for a, b in zip(whole, cells, strict=True))
    before = trouble.calls
    trouble.compare()
    assert trouble.calls - before == 4  # nothing is kept of a grid that came to its end


def comparison(**more: Any) -> dict[str, Any]:
    policies = "sum, kl_soft\nrecommended"
    return ksampler("dual", class_type="ComparePolicies", vae=["vae", 0], policies=policies, seeds=2, **more)


def graph(**more: Any) -> Workflow:
    return world(
        vae=node("VAELoader", vae_name=VAE),
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
    assert [(row["row"], row["column"]) for row in rows] == [
        ({"policy": r["policy"]}, {"seed": r["seed"]}) for r in rows
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


def test_any_two_settings(server: ComfyServer) -> None:
    """The whole grid is the one drawn from the pictures of single runs, bit for bit."""
    axes = {"rows": "cfg", "row_values": "1.5, 2.5", "columns": "emphasis", "column_values": "1, 2.5"}
    made = graph(compare=comparison(steps=2, **axes))
    for emphasis in ("1", "2.5"):
        made[f"routed {emphasis}"] = router("recommended")
        made[f"routed {emphasis}"]["inputs"]["emphasis"] = float(emphasis)
        for cfg in ("1.5", "2.5"):
            made |= sampled(f"{cfg} {emphasis}", f"routed {emphasis}", steps=2, cfg=float(cfg))
    outputs = run(server, made)
    rows = json.loads(outputs["scores"]["text"][0])
    assert [(row["row"], row["column"]) for row in rows] == [
        ({"cfg": cfg}, {"emphasis": emphasis}) for cfg in (1.5, 2.5) for emphasis in (1.0, 2.5)
    ]
    assert {(row["policy"], row["seed"]) for row in rows} == {("recommended", 1)}
    (vae,) = VAELoader().load_vae(VAE)
    cells = []
    for row in rows:
        at = [Setting(name, value, f"{value:g}") for name, value in (row["row"] | row["column"]).items()]
        with torch.no_grad():
            image = vae.decode(latent(server, outputs, " ".join(setting.text for setting in at)))[0]
        cells.append(Cell(row["policy"], row["seed"], image, row["scores"], row["subject_share"], NO_PLAN, *at))
    assert len({one.image.numpy().tobytes() for one in cells}) == len(cells)
    best = cells[[row["best"] for row in rows].index(True)]
    wanted = (255 * comparison_picture(cells, best)[0].numpy()).clip(0, 255).astype(numpy.uint8)  # as core saves it
    shown = Image.open(BytesIO(server.view(outputs["show"]["images"][0])))
    assert numpy.array_equal(numpy.asarray(shown), wanted)


def test_policies_and_seeds_change_sides(server: ComfyServer) -> None:
    """Without values of their own they take the node's; a policy's own setting reaches the policies that have it."""
    turned = graph(compare=comparison(steps=1, rows="seed", columns="policy"))
    rows = json.loads(run(server, turned)["scores"]["text"][0])
    policies = ("sum", "kl_soft", "recommended")
    assert [(row["seed"], row["policy"]) for row in rows] == [(seed, name) for seed in (1, 2) for name in policies]
    own = {"rows": "temperature", "row_values": "0.01, 10", "columns": "seed", "column_values": "not used"}
    soft = graph(compare=comparison(steps=1, **own), soft=router("kl_soft"))
    soft["compare"]["inputs"]["model"] = ["soft", 0]
    hard, hard_2, even, even_2 = json.loads(run(server, soft)["scores"]["text"][0])
    assert [row["policy"] for row in (hard, hard_2, even, even_2)] == ["kl_soft"] * 4
    # Of even weights the share is that of the files alone.
    spec = attachment_of(fused(tiny.world_flux(), ASSETS / "loras" / SUBJECT, ASSETS / "loras" / STYLE)).spec
    assert spec is not None
    files_alone = float(torch.tensor(list(spec.effects.loudness.values())).sigmoid().mean())
    assert abs(even["subject_share"] - files_alone) < 0.05 < abs(hard["subject_share"] - files_alone)
    assert (
        abs(even["subject_share"] - even_2["subject_share"]) < 0.05 < abs(hard["subject_share"] - even["subject_share"])
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rows": "cfg", "row_values": "2, x"}, "row_values: there is no cfg 'x'"),
        ({"columns": "floor", "column_values": "0.3, 2"}, "column_values: there is no floor '2'"),
        ({"columns": "floor"}, "column_values: the list is empty"),
        ({"policies": "sum, nonsense"}, "policies: there is no policy 'nonsense'"),
        ({"rows": "seed"}, "columns: 'seed' is in the rows already"),
        ({"columns": "temperature", "column_values": "1", "policies": "sum"}, "columns: 'temperature' would change"),
    ],
)
def test_bad_grids_are_refused_before_sampling(server: ComfyServer, changes: dict[str, str], complaint: str) -> None:
    bad = comparison()
    bad["inputs"] |= changes
    steps: list[str] = []  # other nodes have progress bars too

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress":
            steps.append(data["node"])

    with pytest.raises(WorkflowError, match=f"ComparePolicies .*{complaint}"):
        server.queue(graph(compare=bad), timeout=300, on_event=watch)
    assert "compare" not in steps


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
