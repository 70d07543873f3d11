"""Scheduled policies against dense float64 references written from the published formulas and official code."""

import numpy as np
import pytest
import torch

from lora_conductor.fusion.policies import BlockMask, Chance, ESTLoRA, KLoRA, StepContext, Switch
from lora_conductor.fusion.segments import ROLES, SegmentDeltas

SUBJECT, STYLE, BOTH = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)
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


def dense(segment):
    return [segment.up[role].double().numpy() @ segment.down[role].double().numpy() for role in ROLES]


def decisions(policy, segments, steps=STEPS):
    """[layer][step] of the policy's weights."""
    prepared = policy.prepare(segments)
    return [[policy.weights_at(prepared, i, StepContext(t, steps)) for t in range(steps)] for i in range(len(segments))]


def k_lora(segments, variant, steps=STEPS, alpha=1.5):
    """The official code's selection, from dense matrices; the step in place of its call counter."""
    pairs = [dense(s) for s in segments]
    ratios = np.array([np.abs(c).sum() / np.abs(s).sum() for c, s in pairs])
    gamma = ratios[ratios < 3 * ratios.mean()].mean()
    chosen = []
    for segment, (c, s) in zip(segments, pairs, strict=True):
        k = segment.up["subject"].shape[1] * segment.up["style"].shape[1]
        top_c, top_s = (np.sort(np.abs(m), axis=None)[::-1][:k].sum() for m in (c, s))
        row = []
        for t in range(steps):
            scale = alpha * t / steps + 0.5 if variant == "s" else (alpha * t / steps + 0.85 * alpha) % alpha
            row.append(SUBJECT if top_c / gamma > top_s * scale else STYLE)
        chosen.append(row)
    return chosen


@pytest.mark.parametrize("variant", ["s", "s*"])
@pytest.mark.parametrize("seed", range(5))
def test_k_lora_equals_the_dense_computation(variant, seed):
    segments = layers(seed=seed)
    expected = k_lora(segments, variant)
    assert {SUBJECT, STYLE} == {w for row in expected for w in row}
    assert decisions(KLoRA(variant), segments) == expected


def test_k_lora_drops_layers_far_above_the_mean_ratio():
    segments = layers()
    segments[3].up["subject"].mul_(1e4)
    assert decisions(KLoRA("s"), segments) == k_lora(segments, "s")


def test_k_lora_flips_each_layer_once_towards_the_style():
    """With "s" the only thing that moves is S(t): subject first, style later, at t* = (S_c / (gamma S_s) - beta) / a."""
    flips = [row.count(SUBJECT) for row in decisions(KLoRA("s"), layers())]
    assert all(row == [SUBJECT] * n + [STYLE] * (STEPS - n) for n, row in zip(flips, decisions(KLoRA("s"), layers())))
    assert len(set(flips)) > 3


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


def est_lora(segments, discrepancy, steps=STEPS, alpha=1.5):
    """EST-LoRA's rule with SD.Next's balance, from Frobenius norms of dense matrices."""
    energies = [[np.linalg.norm(m) ** 2 for m in dense(s)] for s in segments]
    balance = sum(c for c, _ in energies) / sum(s for _, s in energies)
    return [
        [SUBJECT if c / balance >= (alpha * t / steps + 1 - discrepancy) * s else STYLE for t in range(steps)]
        for c, s in energies
    ]


@pytest.mark.parametrize("discrepancy", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_est_lora_equals_the_dense_computation(discrepancy, seed):
    segments = layers(seed=seed)
    assert decisions(ESTLoRA(discrepancy=discrepancy), segments) == est_lora(segments, discrepancy)


@pytest.mark.parametrize("tau", [1, 5])
def test_switch_takes_turns(tau):
    """LoRA Switch's index floor(((t - 1) mod k tau) / tau) + 1, t from 1, for k = 2: the subject first, all layers."""
    for row in decisions(Switch(tau), layers(3)):
        assert row == [(SUBJECT, STYLE)[((t - 1) % (2 * tau)) // tau] for t in range(1, STEPS + 1)]


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
    assert decisions(BlockMask(), [segment], steps=3) == [[role] * 3]


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
