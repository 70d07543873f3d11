"""Scheduled policies against dense float64 references written from the published formulas and official code."""

import numpy as np
import pytest
import torch

from lora_conductor.fusion.layers import SegmentDeltas
from lora_conductor.fusion.policies import CRAFT, BlockMask, Chance, Composite, ESTLoRA, KLoRA, StepContext, Switch
from lora_conductor.fusion.roles import ROLES
from lora_conductor.fusion.routing import Rules

from ..dense_policies import BOTH, STYLE, SUBJECT, est_lora, k_lora

STEPS = 28


def layers(n=24, seed=0, subject_gain=1.0):
    """Layers of several shapes and ranks whose LoRAs are louder in some than in others."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        down, up = {}, {}
        for role, rank in zip(ROLES, (2 + i % 3, 4), strict=True):
            gain = float(torch.rand((), generator=generator)) * 2 + 0.2
            gain *= subject_gain if role == "subject" else 1.0
            down[role] = torch.randn(rank, 10 + i % 4, generator=generator)
            up[role] = torch.randn(8, rank, generator=generator) * gain
        made.append(SegmentDeltas(f"block.{i}", down, up))
    return made


def dense(segments):
    return [[s.up[role].double().numpy() @ s.down[role].double().numpy() for role in ROLES] for s in segments]


def ranks(segments):
    return [[s.rank(role) for role in ROLES] for s in segments]


def decisions(policy, segments, steps=STEPS, blocks=""):
    """[layer][step] of the policy's weights."""
    prepared = policy.prepare(segments, blocks)
    return [[policy.weights_at(prepared, i, StepContext(t, steps)) for t in range(steps)] for i in range(len(segments))]


@pytest.mark.parametrize("variant", ["s", "s*"])
@pytest.mark.parametrize("seed", range(5))
def test_k_lora_equals_the_dense_computation(variant, seed):
    segments = layers(seed=seed)
    expected = k_lora(dense(segments), ranks(segments), variant, STEPS)
    assert {SUBJECT, STYLE} == {w for row in expected for w in row}
    assert decisions(KLoRA(variant), segments) == expected


def test_k_lora_drops_layers_far_above_the_mean_ratio():
    segments = layers()
    segments[3].up["subject"].mul_(1e4)
    assert decisions(KLoRA("s"), segments) == k_lora(dense(segments), ranks(segments), "s", STEPS)


def test_k_lora_flips_each_layer_once_towards_the_style():
    """With "s" only S(t) moves: subject first, style later, from t* = (S_c / (gamma S_s) - beta) / alpha on."""
    rows = decisions(KLoRA("s"), layers())
    for row in rows:
        assert row == [SUBJECT] * row.count(SUBJECT) + [STYLE] * row.count(STYLE)
    assert len({row.count(SUBJECT) for row in rows}) > 3


def test_k_lora_star_schedule():
    """Style-favouring for the first 15 %, then a drop to 0 and a climb: the subject's turn, then the style's."""
    scale = KLoRA("s*").scale
    assert scale(0) == pytest.approx(1.275) and scale(0.14) == pytest.approx(1.485)
    assert scale(0.16) == pytest.approx(0.015) and scale(1) == pytest.approx(1.275)


@pytest.mark.parametrize("policy", [KLoRA("s"), KLoRA("s*"), ESTLoRA()], ids=["s", "s*", "est"])
def test_a_louder_lora_changes_nothing(policy):
    """K-LoRA's gamma and EST's balance take one LoRA's overall strength out."""
    assert decisions(policy, layers(subject_gain=4.0)) == decisions(policy, layers())


@pytest.mark.parametrize("policy", [KLoRA("s"), ESTLoRA()], ids=["k_lora", "est"])
def test_layers_at_zero_go_to_the_other_lora(policy):
    segments = layers(3)
    segments[0].up["style"].zero_()
    segments[1].up["subject"].zero_()
    assert decisions(policy, segments)[0] == [SUBJECT] * STEPS
    assert decisions(policy, segments)[1] == [STYLE] * STEPS


@pytest.mark.parametrize("discrepancy", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_est_lora_equals_the_dense_computation(discrepancy, seed):
    segments = layers(seed=seed)
    assert decisions(ESTLoRA(discrepancy=discrepancy), segments) == est_lora(dense(segments), discrepancy, STEPS)


def test_craft_has_the_published_steps_and_no_lora_in_the_negative_pass():
    """Content in steps 1-35 of 50, style in 15-50, t from 1."""
    (row,) = decisions(CRAFT(), layers(1), steps=50)
    assert [t for t, (subject, _) in enumerate(row, 1) if subject] == list(range(1, 36))
    assert [t for t, (_, style) in enumerate(row, 1) if style] == list(range(15, 51))
    assert {weight for weights in row for weight in weights} == {0.0, 1.0}
    rules = Rules(CRAFT())
    assert [rules.negative_share(cfg) for cfg in (1.0, 1.5, 7.5, 30.0)] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("tau", [1, 5])
def test_switch_takes_turns(tau):
    """LoRA Switch's index floor(((t - 1) mod k tau) / tau) + 1, t from 1, for k = 2: the subject first."""
    passes = [Switch(tau).passes(StepContext(step, STEPS)) for step in range(STEPS)]
    assert passes == [(ROLES[((t - 1) % (2 * tau)) // tau],) for t in range(1, STEPS + 1)]


def test_composite_runs_both_at_every_step():
    assert all(Composite().passes(StepContext(step, STEPS)) == ("subject", "style") for step in range(STEPS))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("diffusion_model.output_blocks.0.1.transformer_blocks.9.attn1.to_q", SUBJECT),
        ("diffusion_model.input_blocks.8.1.proj_in", SUBJECT),
        ("diffusion_model.output_blocks.1.1.transformer_blocks.0.ff.net.2", STYLE),
        ("diffusion_model.output_blocks.2.1.proj_in", BOTH),
        ("diffusion_model.output_blocks.10.1.proj_in", BOTH),
        ("diffusion_model.middle_block.1.proj_in", BOTH),
        ("diffusion_model.single_blocks.0.linear1[0:3072]", SUBJECT),
        ("diffusion_model.single_blocks.9.linear2", SUBJECT),
        ("diffusion_model.single_blocks.10.linear2", STYLE),
        ("diffusion_model.single_blocks.37.modulation.lin", STYLE),
        ("diffusion_model.double_blocks.5.img_attn.qkv", BOTH),
    ],
)
def test_block_roles(name, role):
    segment = SegmentDeltas(name, {}, {})
    blocks, others = ("FLUX", "SDXL") if "_blocks." in name and "put_blocks" not in name else ("SDXL", "FLUX")
    assert decisions(BlockMask(), [segment], steps=3, blocks=blocks) == [[role] * 3]
    for unknown in (others, ""):
        assert decisions(BlockMask(), [segment], steps=3, blocks=unknown) == [[BOTH] * 3]


def test_chance_has_its_share_and_its_seed():
    segments = layers(60)
    rows = decisions(Chance(seed=3, subject_share=1 / 3), segments)
    share = np.mean([[w == SUBJECT for w in row] for row in rows])
    assert share == pytest.approx(1 / 3, abs=4 * (2 / 9 / (60 * STEPS)) ** 0.5)
    assert rows == decisions(Chance(seed=3, subject_share=1 / 3), segments)
    assert rows != decisions(Chance(seed=4, subject_share=1 / 3), segments)
    # The order of the layers is no matter: the name decides.
    assert rows[::-1] == decisions(Chance(seed=3, subject_share=1 / 3), segments[::-1])


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="variant"):
        KLoRA("t")
    with pytest.raises(ValueError, match="tau"):
        Switch(0)
