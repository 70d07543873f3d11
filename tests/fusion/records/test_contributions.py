"""Who drew what: shares of energy, against a sum over dense effects."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_conductor.fusion.records import Effects, RoutingRecord

LAYERS = ("a", "b")


def record(weights, scores, effects) -> RoutingRecord:
    return RoutingRecord({"policy": "x"}, (), {}, (1.0, 0.0), LAYERS, scores, weights, effects=effects)


def test_it_is_the_energy_of_what_each_adds() -> None:
    """Two LoRAs on random features, their weighted effects' energies in float64."""
    tokens = torch.randn(2, 500, 16).double()
    deltas = {role: [torch.randn(16, 16).double() * scale for scale in (1.0, 0.3)] for role in ("subject", "style")}
    weights = torch.rand(2, len(LAYERS), 1).double()
    scores, expected = torch.empty(2, len(LAYERS), 1).double(), []
    for i in range(len(LAYERS)):
        moved = [tokens[i] @ deltas[role][i].T for role in ("subject", "style")]
        scores[:, i, 0] = torch.stack([m.square().sum(-1).mean() for m in moved])
        subject, style = (float((w * m).square().sum()) for w, m in zip(weights[:, i, 0], moved, strict=True))
        expected.append(subject / (subject + style))
    made = record(weights, scores, Effects(measured=True)).contributions()
    torch.testing.assert_close(made[:, 0], torch.tensor(expected).double())
    # On features without direction the files' norms say nearly the same.
    norms = [math.log(a.square().sum() / b.square().sum()) for a, b in zip(*deltas.values(), strict=True)]
    told = record(weights, scores, Effects(loudness=dict(zip(LAYERS, norms, strict=True)))).contributions()
    torch.testing.assert_close(told, made, atol=0.03, rtol=0)


@given(weight=st.just(0.0) | st.floats(1e-6, 3), loudness=st.floats(-40, 40))
def test_alike_is_even_nothing_is_nothing(weight: float, loudness: float) -> None:
    weights = torch.tensor([[[weight], [1.0]], [[1.0], [1.0]]], dtype=torch.float64)
    effects = Effects(loudness={"a": loudness})
    shares = record(weights, weights, effects).contributions()
    assert 0 <= shares[0, 0] <= 1 and shares[1, 0] == 0.5
    ratio = weight**2 * math.exp(loudness)
    assert float(shares[0, 0]) == pytest.approx(ratio / (1 + ratio))
    swapped = record(weights.flip(0), weights, Effects(loudness={"a": -loudness})).contributions()
    torch.testing.assert_close(swapped[0], 1 - shares[0])


def test_what_was_not_decided_is_not_known() -> None:
    weights = torch.tensor([[[torch.nan], [0.0]], [[torch.nan], [0.0]]]).double()
    made = record(weights, weights, Effects(measured=True))
    assert made.contributions()[0].isnan() and made.contributions()[1] == 0.5
    assert made.subject_share() == 0.5
    text = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert text["contributions"] == [[None], [0.5]] and text["measured"] is True and text["loudness"] == [0.0, 0.0]


def test_a_louder_file_draws_more_at_even_weights() -> None:
    even = torch.ones(2, len(LAYERS), 1).double()
    made = record(even, torch.full_like(even, torch.nan), Effects(loudness={"a": math.log(3.0)}))
    assert made.contributions()[:, 0].tolist() == pytest.approx([0.75, 0.5])
    assert made.subject_share() == pytest.approx(0.625) and made.subject_weight() == 0.5
