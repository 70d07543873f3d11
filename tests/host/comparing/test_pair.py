"""A measured pair: anchors are core's own pictures, figures are their formulas, errors and stops cost one picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch
from nodes import VAELoader
from PIL import Image

from comfy_server import ComfyServer, WorkflowError
from lora_conductor.fusion.policies import Sum
from lora_conductor.guidance.burn import burn_against
from lora_conductor.host.comparing import (
    ballot_of,
    eyes_of,
    measure_pair,
    pair_figures,
    pair_pictures,
    pair_report,
    pair_sheet,
    pair_verdict,
)
from lora_conductor.host.comparing.pair import HEATED, KINDS, MEASURED, MeasuredPair, Shot
from lora_conductor.host.comparing.pair_picture import CAPTION, GAP, LEAST, TOP
from lora_conductor.host.core import ConductorError, SamplerCall
from lora_conductor.host.fusing import fused, set_policy
from lora_conductor.host.fusing.results import live_of
from lora_conductor.host.vision import load_metric_encoder

from .. import tiny, tiny_encoders
from ..workflows import STYLE, SUBJECT, Workflow, ksampler, loader, node, run, stock, world

VAE = "emoji_taef1_vae_fp16.safetensors"
ENCODERS = {
    "clip": node("MetricEncoderLoader", encoder_name="emoji_clip.safetensors", library="auto", model_name=""),
    "dino": node("MetricEncoderLoader", encoder_name="emoji_dino.safetensors", library="auto", model_name=""),
}


class Measuring:
    """A measurement in this process, of a model whose n-th call ends as a test wants."""

    def __init__(self, *, policy: Any = None) -> None:
        self.calls = 0
        self.at: dict[int, Callable[[], None]] = {}
        model = tiny.world_flux()
        paths = [folder_paths.get_full_path_or_raise("loras", name) for name in (SUBJECT, STYLE)]
        model = fused(model, *((path, 1.0) for path in paths), policy=policy)
        model.set_model_unet_function_wrapper(self._call)
        (self.vae,) = VAELoader().load_vae(VAE)
        samples = {"samples": torch.zeros(1, 16, 8, 8)}
        prompt, nothing = tiny.conditioning(model, 1), tiny.conditioning(model, 2)
        self.call = SamplerCall(1, 1, 1.0, "euler", "simple", prompt, nothing, samples)
        self.model = model

    def _call(self, forward: Any, arguments: dict[str, Any]) -> torch.Tensor:
        self.calls += 1
        if self.calls in self.at:
            self.at.pop(self.calls)()
        return forward(arguments["input"], arguments["timestep"], **arguments["c"])

    def measure(self, eyes: Any = (), seeds: tuple[int, ...] = (1, 2)) -> MeasuredPair:
        with torch.inference_mode():
            return measure_pair(self.model, self.call, seeds, self.vae, eyes)


def fail() -> None:
    raise RuntimeError("no such picture")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("encoders")
    with torch.inference_mode():
        return {
            "subject": load_metric_encoder(str(tiny_encoders.write_dino(folder / "dino.safetensors"))),
            "style": load_metric_encoder(str(tiny_encoders.write_clip(folder / "clip.safetensors"))),
        }


def embedded(source: Any, image: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        vector = source.encoder.embed(image[None].movedim(-1, 1).float(), source.encoder.module)[0].double().numpy()
    return vector / np.linalg.norm(vector)


NOTHING = {"subject": None, "style": None}


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)], ids=len)
def test_axes_are_their_formula(encoders: dict[str, Any], seeds: tuple[int, ...], given: bool) -> None:
    """In float64: cosines to the user's picture, or to what the LoRA draws alone at the other seeds."""
    photos = {role: tiny_encoders.smooth_picture(9 + i, 64) if given else None for i, role in enumerate(NOTHING)}
    pair = Measuring().measure(eyes_of(encoders, photos, None), seeds)
    assert pair.whole == seeds and pair.given == (("subject", "style") if given else ())
    for role, source in encoders.items():
        vectors = {place: embedded(source, shot.image) for place, shot in pair.shots.items()}
        near: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for seed in seeds:
            others = [other for other in seeds if other != seed] or [seed]
            photo = photos[role]
            targets = [vectors[role, o] for o in others] if photo is None else [embedded(source, photo[0])]
            for kind in KINDS:
                near[kind].append(float(np.mean([vectors[kind, seed] @ target for target in targets])))
        ways = np.array(near[role]) - np.array(near["base"])
        way, error = float(ways.mean()), float(ways.std(ddof=1)) / len(seeds) ** 0.5 if len(seeds) > 1 else 0.0
        for kind in KINDS:
            assert pair.similarities[role][kind] == pytest.approx(near[kind], abs=2e-5)
            if way < max(0.02, 2 * error):
                assert pair.axes[role][kind] == [None] * len(seeds)
                continue
            expected = [(fused - base) / way for fused, base in zip(near[kind], near["base"], strict=True)]
            assert pair.axes[role][kind] == pytest.approx(expected, abs=1e-4 / way)


def test_burn_is_against_the_style_alone_of_the_same_seed() -> None:
    pair = Measuring().measure()
    assert tuple(pair.burn) == HEATED
    for kind in HEATED:
        for i, seed in enumerate(pair.whole):
            ours, style = (pair.shots[k, seed].image.movedim(-1, 0)[None] for k in (kind, "style"))
            for figure, ratio in burn_against(ours, style).items():
                assert pair.burn[kind][figure][i] == pytest.approx(float(ratio), rel=1e-5)


def test_an_error_costs_its_seed_and_no_more() -> None:
    measuring = Measuring()
    whole = measuring.measure()
    measuring.at = {measuring.calls + 4: fail}  # subject alone, second seed
    pair = measuring.measure()
    assert [place for place, shot in pair.shots.items() if shot.error] == [("subject", 2)]
    assert pair.whole == (1,)
    for place, shot in pair.shots.items():
        assert shot.error or torch.equal(shot.image, whole.shots[place].image)
    assert "subject, seed 2: no such picture" in pair_report(pair, 1.0)
    assert pair_figures(pair)["errors"] == {"subject 2": "no such picture"}
    assert pair_pictures(pair).shape[0] == 10 and pair_sheet(pair, pair_verdict(pair, 1.0)).shape[0] == 1
    assert len(ballot_of(pair, measuring.call)["pairs"]) == 1
    measuring.at = {measuring.calls + i: fail for i in range(1, 11)}
    with pytest.raises(RuntimeError, match="no such picture"):
        measuring.measure()


def test_without_a_whole_seed_there_is_still_a_sheet() -> None:
    measuring = Measuring()
    measuring.at = {measuring.calls + 1: fail, measuring.calls + 10: fail}
    pair = measuring.measure()
    assert pair.whole == () and pair_verdict(pair, 1.0)[0] == "verdict: no seed has all five pictures"
    assert pair_sheet(pair, pair_verdict(pair, 1.0)).ndim == 4 and pair_report(pair, 1.0)
    assert ballot_of(pair, measuring.call)["pairs"] == []


def test_a_stopped_measurement_goes_on_where_it_was() -> None:
    measuring = Measuring()
    whole = measuring.measure()
    measuring.at = {measuring.calls + 6: comfy.model_management.interrupt_current_processing}
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        measuring.measure()
    before = measuring.calls
    pair = measuring.measure()
    assert measuring.calls - before in (4, 5)
    assert all(torch.equal(shot.image, whole.shots[place].image) for place, shot in pair.shots.items())
    before = measuring.calls
    measuring.measure()
    assert measuring.calls - before == 10


def test_an_encoder_that_fails_costs_no_pictures(encoders: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = Measuring()
    monkeypatch.setattr(encoders["style"].encoder, "preprocess", lambda images: fail())
    with pytest.raises(RuntimeError, match="no such picture"):
        measuring.measure(eyes_of(encoders, NOTHING, None))
    monkeypatch.undo()
    before = measuring.calls
    assert measuring.measure(eyes_of(encoders, NOTHING, None)).axes
    assert measuring.calls == before


def test_what_cannot_be_measured_is_named_before_sampling(encoders: dict[str, Any]) -> None:
    photo = torch.rand(1, 16, 16, 3)
    with pytest.raises(ConductorError, match="^style_image: there is no encoder"):
        eyes_of({**encoders, "style": None}, {"subject": None, "style": photo}, None)
    with pytest.raises(ConductorError, match="^subject_encoder: .*is not an image encoder"):
        eyes_of({**encoders, "subject": object()}, NOTHING, None)
    one = Measuring()
    one.model = fused(tiny.world_flux(), (folder_paths.get_full_path_or_raise("loras", SUBJECT), 1.0))
    with pytest.raises(ConductorError, match="^model: it has no style LoRA"):
        one.measure()


def made_up(ours: tuple[float, float], stacked: tuple[float, float], burn: float, **changes: Any) -> MeasuredPair:
    """Eight seeds with these axes (subject, style), scattered a little, and everything so much burnt."""
    measuring = Measuring(policy=changes.pop("policy", None))
    seeds = tuple(range(8))
    axes = {
        role: {
            kind: [value + 0.01 * (seed % 3) for seed in seeds]
            for kind, value in (("ours", ours[i]), ("stacked", stacked[i]))
        }
        for i, role in enumerate(NOTHING)
    }
    subject = changes.pop("subject_burn", 0.9)
    ratios = {kind: {f: [burn if kind in MEASURED else subject] * 8 for f in ("chroma", "clipped")} for kind in HEATED}
    for kind in HEATED:
        ratios[kind] |= {figure: [1.0] * 8 for figure in ("contrast", "gradient", "colourfulness")}
    return replace(
        MeasuredPair(
            live_of(measuring.model)[1],
            seeds,
            seeds,
            {(k, s): Shot(torch.zeros(8, 8, 3)) for k in KINDS for s in seeds},
            {},
            axes,
            ratios,
            (),
        ),
        **changes,
    )


@pytest.mark.parametrize(
    ("ours", "stacked", "burn", "cfg", "said", "unsaid"),
    [
        ((0.9, 0.9), (0.8, 0.3), 1.0, 7.0, ["91% \u00b1", "not burnt", "vote"], ["weak", "cool", "plain stack goes"]),
        ((0.2, 0.9), (0.8, 0.3), 1.0, 7.0, ["the subject is weak: subject_strength", "balance 1"], ["style is weak"]),
        ((0.9, 0.2), (0.8, 0.3), 1.0, 7.0, ["the style is weak: style_strength", "balance -1"], ["subject is weak"]),
        ((0.2, 0.3), (0.1, 0.1), 1.0, 7.0, ["both are weak: emphasis 3.5, or both"], ["is weak:"]),
        ((0.2, 0.3), (0.1, 0.1), 1.0, 1.0, ["both are weak: emphasis 1.25, or both strengths up"], ["is weak:"]),
        ((0.6, 0.6), (0.9, 0.9), 1.0, 7.0, ["the plain stack goes further"], ["weak"]),
        ((0.9, 0.9), (0.8, 0.3), 1.4, 7.0, ["burnt: chroma 1.40 times", "to cool it, emphasis"], ["not burnt"]),
        ((0.9, 0.9), (0.8, 0.3), 1.4, 1.0, ["to cool it, both strengths down"], ["emphasis"]),
    ],
)
def test_the_verdict_says_what_to_turn(
    ours: tuple[float, float], stacked: tuple[float, float], burn: float, cfg: float, said: list[str], unsaid: list[str]
) -> None:
    text = "\n".join(pair_verdict(made_up(ours, stacked, burn), cfg))
    assert [part for part in said if part not in text] == [] and [part for part in unsaid if part in text] == [], text


def test_the_verdict_knows_what_it_does_not_know() -> None:
    few = made_up((0.9, 0.9), (0.8, 0.3), 1.0)
    text = "\n".join(pair_verdict(replace(few, seeds=(1, 2), whole=(1, 2)), 7.0))
    assert "2 seeds say little" in text
    blind = replace(few, axes={"style": few.axes["style"], "subject": {kind: [None] * 8 for kind in KINDS}})
    assert "the subject LoRA alone comes no nearer" in "\n".join(pair_verdict(blind, 7.0))
    assert "likeness was not measured" in pair_verdict(replace(few, axes={}), 7.0)[0]
    assert "not burnt" in pair_verdict(made_up((0.9, 0.9), (0.8, 0.3), 1.4, subject_burn=1.4), 7.0)[0]
    assert "burnt: chroma 1.25 times" in pair_verdict(made_up((0.9, 0.9), (0.8, 0.3), 1.5, subject_burn=1.2), 7.0)[0]
    scattered = {kind: [-2.0, 3.0] * 4 for kind in MEASURED}
    unsure = "\n".join(pair_verdict(replace(few, axes={**few.axes, "subject": scattered}), 7.0))
    assert "the seeds disagree about the subject" in unsure and "weak" not in unsure
    summed = made_up((0.2, 0.9), (0.2, 0.9), 1.0, policy=Sum())
    assert "subject_strength up" in (text := "\n".join(pair_verdict(summed, 7.0))) and "balance" not in text


def test_the_sheet_has_every_picture_in_its_place() -> None:
    measuring = Measuring()
    pair = measuring.measure()
    sheet = pair_sheet(pair, pair_verdict(pair, 1.0))[0]
    size = 64  # of the pictures, shown larger
    left = sheet.shape[1] - len(KINDS) * (LEAST + GAP)
    for row, seed in enumerate(pair.seeds):
        for column, kind in enumerate(KINDS):
            y, x = TOP + row * (LEAST + CAPTION), left + column * (LEAST + GAP)
            shown = sheet[y : y + LEAST, x : x + LEAST].movedim(-1, 0)[None]
            small = torch.nn.functional.interpolate(shown, size=(size, size), mode="area")[0].movedim(0, -1)
            nearest = min(pair.shots, key=lambda place: float((pair.shots[place].image - small).abs().mean()))
            assert nearest == (kind, seed)


def test_ballots_are_blind_and_know_their_setup() -> None:
    measuring = Measuring()
    pair = measuring.measure()
    one, again = ballot_of(pair, measuring.call), ballot_of(pair, measuring.call)
    assert one["setup"] == again["setup"] and [p["id"] for p in one["pairs"]] == [p["id"] for p in again["pairs"]]
    assert one["setup"] != ballot_of(pair, replace(measuring.call, cfg=2.0))["setup"]
    other = replace(pair, spec=live_of(set_policy(measuring.model, Sum()))[1])
    assert one["setup"] != ballot_of(other, measuring.call)["setup"]
    for ballot in one["pairs"]:
        for kind, name in ballot["pictures"].items():
            assert not any(word in name for word in KINDS)
            image = np.asarray(Image.open(Path(folder_paths.get_temp_directory()) / name))
            assert np.array_equal(image, (pair.shots[kind, ballot["seed"]].image * 255).round().byte().numpy())


def measuring_node(**more: Any) -> dict[str, Any]:
    return ksampler("dual", class_type="MeasureMyPair", vae=["vae", 0], seeds=2, steps=2, **more)


def graph(**more: Any) -> Workflow:
    return world(vae=node("VAELoader", vae_name=VAE), dual=loader(subject_strength=0.9, style_strength=0.7), **more)


def pixels(server: ComfyServer, image: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(server.view(image)))).astype(int)


def test_anchors_are_core_s_own_pictures(server: ComfyServer) -> None:
    """Through the executor, against core's loaders and KSampler; shown files are the same pictures."""
    made = graph(
        measure=measuring_node(subject_encoder=["dino", 0], style_encoder=["clip", 0]),
        all=node("PreviewImage", images=["measure", 1]),
        sheet=node("PreviewImage", images=["measure", 0]),
        report=node("PreviewAny", source=["measure", 2]),
        figures=node("PreviewAny", source=["measure", 3]),
        subject=stock("model", SUBJECT, 0.9),
        style=stock("model", STYLE, 0.7),
        stacked=stock("subject", STYLE, 0.7),
        **ENCODERS,
    )
    models = {"base": "model", "subject": "subject", "style": "style", "stacked": "stacked", "ours": "dual"}
    for kind, model in models.items():
        for seed in (1, 2):
            name = f"{kind} {seed}"
            made[f"{name}.sample"] = ksampler(model, seed=seed, steps=2)
            made[f"{name}.decode"] = node("VAEDecode", samples=[f"{name}.sample", 0], vae=["vae", 0])
            made[name] = node("PreviewImage", images=[f"{name}.decode", 0])
    outputs = run(server, made)
    order = [f"{kind} {seed}" for seed in (1, 2) for kind in KINDS]
    for name, image in zip(order, outputs["all"]["images"], strict=True):
        assert np.array_equal(pixels(server, image), pixels(server, outputs[name]["images"][0])), name
    (ballot,) = outputs["measure"]["ballot"]
    for shown in ballot["pairs"]:
        for kind, file in shown["pictures"].items():
            expected = pixels(server, outputs[f"{kind} {shown['seed']}"]["images"][0])
            found = pixels(server, {"filename": file, "subfolder": "", "type": "temp"})
            assert abs(found - expected).max() <= 1  # core cuts off, this rounds
    figures = json.loads(outputs["figures"]["text"][0])
    assert figures["measured_seeds"] == [1, 2] and set(figures["axes"]) == {"subject", "style"}
    assert figures["references"] == {"subject": "drawn", "style": "drawn"} and figures["errors"] == {}
    (text,) = outputs["measure"]["text"]
    assert text == outputs["report"]["text"][0] and text.startswith("verdict: ") and "\nnext: " in text
    assert len(outputs["sheet"]["images"]) == 1


def test_without_encoders_it_still_makes_sheet_burn_and_ballot(server: ComfyServer) -> None:
    made = graph(measure=measuring_node(seed=2**64 - 1), figures=node("PreviewAny", source=["measure", 3]))
    outputs = run(server, made)
    figures = json.loads(outputs["figures"]["text"][0])
    assert figures["axes"] == {} and len(figures["burn"]["ours"]["chroma"]) == 2
    assert "likeness was not measured" in outputs["measure"]["text"][0]
    assert [pair["seed"] for pair in outputs["measure"]["ballot"][0]["pairs"]] == [2**64 - 1, 0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": ["model", 0]}, "carries no LoRAs"),
        ({"style_image": ["photo", 0]}, "style_image: there is no encoder to compare it by"),
        ({"subject_encoder": ["clip", 0], "subject_image": ["tiny", 0]}, "subject_image: the picture is empty or too"),
    ],
)
def test_what_cannot_be_measured_is_refused_through_the_executor(
    server: ComfyServer, changes: dict[str, Any], complaint: str
) -> None:
    more = {
        "photo": node("LoadImage", image="style_openmoji_koala.png"),
        "tiny": node("EmptyImage", width=4, height=4, batch_size=1, color=0),
    }
    bad = measuring_node()
    bad["inputs"] |= changes
    with pytest.raises(WorkflowError, match=f"MeasureMyPair .*{complaint}"):
        run(server, graph(measure=bad, **more, **ENCODERS))
