"""Routing Report's verdict, and what the help pages say of share, strengths and balance: on real runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.emoji.methods.lora_loudness import louder
from lora_conductor.fusion.policies import RECOMMENDED, ScoredPolicy, StepContext
from lora_conductor.fusion.records import RoutingRecord
from lora_conductor.fusion.routing import NAMED, Refinement, with_settings
from lora_conductor.host.fusing import attachment_of, fused, record_of_latent
from lora_conductor.host.fusing.normal import USUAL
from lora_conductor.host.fusing.verdict import cfg_of, loudness, verdict
from repo_paths import ASSETS

from ..tiny import sample, world_flux
from ..workflows import STYLE, SUBJECT, node


@pytest.fixture(scope="module")
def model() -> Any:
    return world_flux()


def run(
    model: Any, policy: str = "recommended", strength: float = 1.0, steps: int = 8, times: float = 1.0, **settings: Any
) -> Any:
    """A record and its spec. times: how much louder the subject's file is made."""
    subject, style = louder(ASSETS / "loras" / SUBJECT, times), ASSETS / "loras" / STYLE
    loaded = fused(model, (subject, strength), style, *with_settings(NAMED[policy], Refinement(), settings))
    latent = sample(loaded, steps=steps, cfg=2.5)
    return record_of_latent(loaded, latent), attachment_of(loaded).spec


def share(record: RoutingRecord) -> float:
    found = record.subject_share()
    assert found is not None
    return found


def test_equally_loud_files_have_the_share_that_is_usual() -> None:
    assert isinstance(RECOMMENDED, ScoredPolicy)
    shares = []
    for step in range(20):
        subject, style = RECOMMENDED.weights(torch.zeros(()), 0.0, StepContext(step, 20, emphasis=2.5))
        shares.append(float(subject**2 / (subject**2 + style**2)))
    assert sum(shares) / 20 == pytest.approx(USUAL["recommended"][0], abs=0.02)


def test_a_louder_file_is_evened_out_and_a_strength_is_not_and_balance_shifts_the_share(model: Any) -> None:
    (plain, spec), (stronger, stronger_spec) = run(model), run(model, strength=2.0)
    loud, loud_spec = run(model, times=2.0)
    plainly = loudness(plain, spec)
    assert loudness(loud, loud_spec) / plainly == pytest.approx(2.0, rel=0.15)
    assert loudness(stronger, stronger_spec) / plainly == pytest.approx(1.0, rel=0.15)
    assert share(loud) == pytest.approx(share(plain), abs=0.01)
    assert share(stronger) > share(plain) + 0.1
    assert share(run(model, balance=1.0)[0]) > share(plain) + 0.1
    weights = [float(record.subject_weight()) for record in (loud, plain, stronger)]
    assert weights[0] < weights[1] and weights[2] == pytest.approx(weights[1], abs=0.01)


def test_says_how_loud_and_what_to_turn(model: Any) -> None:
    record, spec = run(model, times=3.0, balance=0.5)
    logs = (record.scores[0] / record.scores[1]).sqrt().log()
    times = math.exp(float(logs.nanmean()))
    said = verdict(record, spec, 4, 2.5)
    named, shown = ("subject", times) if times > 1 else ("style", 1 / times)
    assert said[0].startswith(f"verdict: {len(record.layers)} layers routed, 4 entries left out; the {named}'s file is")
    assert f"{shown:.1f} times as loud" in said[0]
    assert said[1:] == [
        "next: if the face is lost, subject_strength up by a quarter, or balance 1.5",
        "next: if the style is weak, style_strength up by a quarter, or balance -0.5",
        "next: if it is burnt, emphasis 1.5, then both strengths down together",
    ]
    faint, burnt = verdict(record, spec, 0, 1.0)[3:]
    assert "both are faint, emphasis 1.25" in faint and burnt.endswith("if it is burnt, both strengths down together")
    assert not any("faint" in line for line in verdict(*run(model, "paper"), 0, 1.0))
    assert "4 steps are few" in verdict(*run(model, steps=4), 0, 2.5)[-1]


def test_where_one_has_nearly_everything_it_says_which(model: Any) -> None:
    record, spec = run(model, "paper", balance=9.0)
    assert share(record) > 0.8
    said = verdict(record, spec, 0, 2.5)
    assert "the subject holds nearly everything" in said[0] and "balance 8" in said[1]
    record, spec = run(model, "paper", balance=-9.0)
    assert "the style holds nearly everything" in verdict(record, spec, 0, 2.5)[0]


def test_where_nothing_was_routed_it_says_why(model: Any) -> None:
    record, spec = run(model, "sum")
    assert (
        verdict(record, spec, 0, 2.5)[0] == "verdict: nothing was routed, since the policy was merged before sampling"
    )


def test_scale_is_that_of_the_latent_s_own_sampler() -> None:
    prompt = {
        "report": node("RoutingReport", latent=["second", 0]),
        "second": node("SamplerCustomAdvanced", guider=["guider", 0], latent_image=["first", 0]),
        "guider": node("CFGGuider", cfg=4),
        "first": node("KSampler", cfg=7.0),
        "other": node("KSampler", cfg=1.0),
    }
    assert cfg_of(prompt, "report") == 4.0
    assert cfg_of({"report": node("RoutingReport", latent=["x", 0]), "x": node("BasicGuider")}, "report") is None
