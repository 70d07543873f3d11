"""When a reference that a LoRA draws is drawn anew: whenever the model is another, and only then."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from lora_conductor.host.core import SamplerCall
from lora_conductor.host.fusing import fused
from lora_conductor.host.guiding import drawn
from repo_paths import ASSETS

from ..tiny import world_flux
from ..workflows import STYLE, SUBJECT


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Sampling, which makes a latent of nothing."""
    made = mock.Mock(side_effect=lambda model, call: {"samples": torch.zeros(1, 16, 8, 8)})
    monkeypatch.setattr(drawn, "sampled", made)
    return made


def draw(model: Any, vae: Any, **changes: Any) -> None:
    given = {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    conditioning = [[torch.zeros(1, 4, 256), {}]]
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    call = SamplerCall(positive=conditioning, negative=conditioning, latent_image=latent, **{**given, **changes})
    drawn._draw(model, "subject", call, vae)


class Vae(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.fixture
def vae() -> Any:
    return Vae(decode=lambda samples: torch.zeros(1, 64, 64, 3))


@pytest.fixture(scope="module")
def model() -> Any:
    return fused(world_flux(), ASSETS / "loras" / SUBJECT, ASSETS / "loras" / STYLE)


def test_once_for_the_same(model: Any, vae: Any, draws: mock.Mock) -> None:
    draw(model, vae)
    draw(model, vae)
    draw(model.clone(), vae)
    assert draws.call_count == 1
    draw(model, vae, seed=2)
    assert draws.call_count == 2


def shifted(model: Any, shift: float) -> Any:
    """As core's nodes that shift a model's schedule do."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift=shift, multiplier=1.0)[0]


def test_a_shifted_schedule_is_another_model(model: Any, vae: Any, draws: mock.Mock) -> None:
    draw(model, vae)
    other = shifted(model, 7.0)
    draw(other, vae)
    draw(other.clone(), vae)
    assert draws.call_count == 2
    draw(shifted(model, 1.5), vae)
    assert draws.call_count == 3
    draw(model, vae)
    assert draws.call_count == 3


@pytest.mark.parametrize("kind", ["function", "option", "patch", "wrapper"])
def test_what_other_nodes_put_on_it(model: Any, vae: Any, draws: mock.Mock, kind: str) -> None:
    def changed() -> Any:
        other = model.clone()
        if kind == "function":
            other.set_model_sampler_cfg_function(lambda args: args["cond"])
        elif kind == "option":
            other.model_options["transformer_options"]["strength"] = 0.5
        elif kind == "patch":
            other.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
        else:
            other.add_wrapper_with_key(
                "apply_model", "another_pack", lambda executor, *args, **kw: executor(*args, **kw)
            )
        return other

    draw(model, vae)
    other = changed()
    draw(other, vae)
    draw(other, vae)
    assert draws.call_count == 2


def test_the_place_of_one_that_is_gone_is_not_its_successor_s(model: Any, vae: Any, draws: mock.Mock) -> None:
    for count in range(1, 6):
        draw(shifted(model, float(count)), vae)
        gc.collect()
        assert draws.call_count == count
