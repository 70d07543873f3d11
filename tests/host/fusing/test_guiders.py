"""Guiders of other kinds: several models in one run, scales that change on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch

from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Sum
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.fusing import record_of_latent
from lora_conductor.host.fusing.loading import fused

from .. import tiny
from ..adapter_files import make_file

DualModel = getattr(custom, "Guider_DualModel", None)
dual = pytest.mark.skipif(DualModel is None, reason="this ComfyUI has no Dual Model CFG Guider")
STEPS = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, shapes = tmp_path_factory.mktemp("guiders"), tiny.layer_shapes(tiny.tiny_flux())
    return {
        role: tiny.make_lora(folder / f"{role}.safetensors", shapes, seed=seed, size=0.3)
        for seed, role in enumerate(("subject", "style"), 1)
    }


def guide(guider: Any, model: Any, cfg: Any = 2.5) -> torch.Tensor:
    """Sample as core's SamplerCustomAdvanced does."""
    empty = tiny.latent(model, 2)
    guider.set_conds(tiny.conditioning(model, 1), tiny.conditioning(model, 2))
    guider.cfg = cfg
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    noise = comfy.sample.prepare_noise(empty, 5)
    with torch.inference_mode():
        return guider.sample(noise, empty, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=5)


def with_loras(model: Any, files: dict[str, Path]) -> tuple[Any, Any]:
    """The same LoRAs by us, fused live, and by core."""
    ours = fused(model, files["subject"], files["style"], Sum(), always_live=True)
    return ours, tiny.core_stacked(model, (files["subject"], 1.0), (files["style"], 1.0))


@dual
@pytest.mark.parametrize("where", ["positive", "negative", "both"])
def test_loras_act_on_the_model_that_carries_them(files: Any, where: str) -> None:
    one, other = tiny.tiny_flux(), tiny.tiny_flux()
    ours, core = [], []
    for model, name in ((one, "positive"), (other, "negative")):
        own, reference = with_loras(model, files) if where in (name, "both") else (model, model)
        ours.append(own)
        core.append(reference)
    expected = guide(DualModel(*core), one)
    assert tiny.relative(guide(DualModel(*ours), one), expected) < 1e-5
    assert tiny.relative(guide(DualModel(one, other), one), expected) > 1e-2
    assert all("apply_model" not in model.model.__dict__ for model in (one, other))


@dual
def test_each_model_has_its_own_loras(files: Any) -> None:
    one, other = tiny.tiny_flux(), tiny.tiny_flux()
    ours = [
        fused(one, subject=files["subject"], policy=Sum(), always_live=True),
        fused(other, style=files["style"], policy=Sum(), always_live=True),
    ]
    core = [tiny.core_stacked(one, (files["subject"], 1.0)), tiny.core_stacked(other, (files["style"], 1.0))]
    assert tiny.relative(guide(DualModel(*ours), one), guide(DualModel(*core), one)) < 1e-5


@dual
def test_the_negative_model_may_have_other_layers(files: Any) -> None:
    """It lacks layers that the LoRAs of the positive one are for."""
    one, other = tiny.tiny_flux(), tiny.tiny_flux()
    del other.model.diffusion_model.double_blocks[-1]
    routed = fused(one, files["subject"], files["style"], KLSoft())
    core = guide(DualModel(one, other), one)
    assert tiny.relative(guide(DualModel(routed, other), one), core) > 1e-3


@dual
def test_a_run_on_the_negative_model_alone_is_recorded(files: Any) -> None:
    one, other = tiny.tiny_flux(), tiny.tiny_flux()
    routed = fused(other, files["subject"], files["style"], KLSoft())
    live = routed.get_attachment("lora_conductor").live
    guide(DualModel(one, routed), one)
    (run,) = live.kept
    assert run.record.layers and run.record.steps == STEPS and not run.record.weights.isnan().any()


@dual
@pytest.mark.parametrize("kind", ["dora_out_lora", "oft"])
@pytest.mark.parametrize("where", ["negative", "both"])
def test_other_models_of_a_run_have_their_loras_in_the_order_of_loading(
    files: Any, tmp_path: Path, kind: str, where: str
) -> None:
    """Core's loader behind ours, with an adapter that looks at the weight: those layers are left to core."""
    one, other = tiny.tiny_flux(), tiny.tiny_flux()
    odd = make_file(tmp_path / f"{kind}.safetensors", kind, tiny.layer_shapes(one), seed=4)

    def behind(model: Any) -> tuple[Any, Any]:
        return tuple(tiny.core_stacked(loaded, (odd, 0.7)) for loaded in with_loras(model, files))

    negative, of_core = behind(other)
    positive = with_loras(one, files) if where == "both" else (one, one)
    patches, version = dict(negative.patches), negative.patches_uuid
    expected = guide(DualModel(positive[1], of_core), one)
    assert tiny.relative(guide(DualModel(positive[0], negative), one), expected) < 1e-5
    assert negative.patches == patches and negative.patches_uuid == version
    assert tiny.relative(guide(DualModel(*positive), one), expected) > 1e-3
    assert tiny.relative(guide(DualModel(positive[0], negative), one), expected) < 1e-5


class ByList(comfy.samplers.CFGGuider):
    """One scale a step, in a list, as a widely used pack keeps it; plain below start_percent or above end_percent."""

    start_percent, end_percent = 0.0, 1.0

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = {}, seed: Any = None) -> Any:  # noqa: B006
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        step = int((sigmas == timestep[0]).nonzero()[0])
        cfg = self.cfg[step] if isinstance(self.cfg, list) else self.cfg
        inside = self.start_percent <= step / (len(sigmas) - 1) <= self.end_percent
        negative = self.conds.get("negative") if inside else None
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            negative,
            self.conds.get("positive"),
            cfg if inside else 1.0,
            model_options=model_options,
            seed=seed,
        )


class StepByStep(comfy.samplers.CFGGuider):
    """Sets its own scale anew before every step."""

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = {}, seed: Any = None) -> Any:  # noqa: B006
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        self.cfg = self.scales[int((sigmas == timestep[0]).nonzero()[0])]
        return super().predict_noise(x, timestep, model_options, seed)


@pytest.mark.parametrize("policy", [RECOMMENDED, KLSoft()], ids=["recommended", "kl_soft"])
@pytest.mark.parametrize("emphasis", [0.0, 2.0])
def test_a_list_of_one_scale_is_that_scale(files: Any, policy: Any, emphasis: float) -> None:
    model = tiny.tiny_flux()
    ours = fused(model, files["subject"], files["style"], policy, Refinement(emphasis=emphasis))
    plain = guide(comfy.samplers.CFGGuider(ours), model)
    assert torch.equal(guide(ByList(ours), model, [2.5] * STEPS), plain)


@pytest.mark.parametrize("scales", [[4.0, 3.0, 2.0, 1.5], [1.0, 2.5, 4.0, 1.0]])
def test_emphasis_follows_the_scale_of_each_step(files: Any, scales: list[float]) -> None:
    model = tiny.tiny_flux()
    ours = fused(model, files["subject"], files["style"], RECOMMENDED)
    by_step = StepByStep(ours)
    by_step.scales = scales
    found = guide(by_step, model, scales[0])
    assert tiny.relative(guide(ByList(ours), model, scales), found) < 1e-6
    fixed = guide(comfy.samplers.CFGGuider(ours), model, scales[0])
    assert tiny.relative(fixed, found) > 1e-3


def test_outside_of_its_window_a_guider_does_not_guide(files: Any) -> None:
    model = tiny.tiny_flux()
    ours = fused(model, files["subject"], files["style"], RECOMMENDED)
    guider = ByList(ours)
    guider.end_percent = 0.4
    found = guide(guider, model, 2.5)
    by_step = StepByStep(ours)
    by_step.scales = [2.5, 2.5, 1.0, 1.0]
    assert tiny.relative(found, guide(by_step, model)) < 1e-6
    assert record_of_latent(ours, found).steps == STEPS


@pytest.mark.parametrize("scales", [[4.0, 1.0, 2.0, 3.0], [2.5] * STEPS])
def test_freezing_keeps_the_passes_apart_when_the_scale_may_change(
    files: Any, scales: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is 1, and both passes get the same, just before the decisions are frozen: it may rise again."""

    def merge(*_: Any) -> None:
        raise AssertionError("weight patches cannot tell the passes apart")

    monkeypatch.setattr("lora_conductor.host.fusing.run.freeze", merge)
    model = tiny.tiny_flux()
    ours = fused(model, files["subject"], files["style"], RECOMMENDED, Refinement(freeze_after=2))
    found = guide(ByList(ours), model, scales)
    if len(set(scales)) == 1:
        assert tiny.relative(guide(comfy.samplers.CFGGuider(ours), model), found) < 1e-6
    assert torch.isfinite(found).all()
