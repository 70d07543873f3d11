"""The router's settings, each against its definition on single layers."""

import math

import pytest
import torch
import torch.nn.functional as F

from lora_conductor.fusion.adapters import Geometry, LowRankDelta
from lora_conductor.fusion.layers import Batch, FusedLayer, Part
from lora_conductor.fusion.policies import SCORES, Chance, KLSoft, Paper, StepContext, settings_of
from lora_conductor.fusion.routing import Picture, Refinement, Router, Rules, prepare

from ..decided import decisions_of

WIDTH, OUT = 12, 16


class Bench:
    """A layer or several, run step by step by one router."""

    def __init__(self, policy, refinement, names=("l",), head_width=None, groups=None, sizes=(1.0, 1.0), steps=10):
        torch.manual_seed(0)
        self.weight = torch.randn(OUT, WIDTH)
        self.layers = []
        for i, name in enumerate(names):
            part = Part(0, OUT, "q", head_width, groups[i] if groups else None)
            deltas = [
                (role, 1.0, LowRankDelta(torch.randn(3, WIDTH), size * torch.randn(OUT, 3), 0.3))
                for role, size in zip(("subject", "style"), sizes, strict=True)
            ]
            self.layers.append(FusedLayer(name, Geometry(WIDTH, OUT), deltas, parts=[part]))
        self.router = Router(Rules(policy, refinement, prepare(policy, refinement, self.layers)))
        self.steps = steps

    def step(self, step, x, keys=("positive.0",)):
        """Decisions of one call, and the outputs of all layers."""
        self.router.context = StepContext(step, self.steps)
        call = self.router.open_call(Batch(tuple(keys), "positive.0"), Picture((x.shape[1],)))
        outputs = [layer.fuse(x, F.linear(x, self.weight), call.decide) for layer in self.layers]
        return decisions_of(call), outputs

    def log_ratio(self, x, score, layer=0):
        base = F.linear(x, self.weight)
        dense = self.layers[layer].segment_deltas(self.layers[layer].segments[0])
        c, s = (SCORES[score](base, F.linear(x, dense.dense(role))) for role in ("subject", "style"))
        return (c / s).log()


def subject_weight(decision):
    return decision.weights["subject"]


def inputs(seed, batch=2, tokens=6):
    return torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("score", list(SCORES))
def test_the_score_can_be_chosen(score):
    bench = Bench(KLSoft(tokens=0), Refinement(score=score))
    (decision,), _ = bench.step(0, inputs(1))
    expected = torch.sigmoid(bench.log_ratio(inputs(1), score) / 0.5)
    torch.testing.assert_close(subject_weight(decision)[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_lean_and_time_lead_add_to_the_log_ratio():
    x = inputs(1)
    for step in (0, 4, 9):
        bench = Bench(KLSoft(tokens=0), Refinement(lean=0.3, time_lead=0.8))
        (decision,), _ = bench.step(step, x)
        lean = 0.3 + 0.8 * (1 - 2 * step / 10)
        expected = torch.sigmoid((bench.log_ratio(x, "half_variance") + lean) / 0.5)
        torch.testing.assert_close(subject_weight(decision)[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_layer_prior_prefers_the_role_a_block_is_known_for():
    names = ["diffusion_model.output_blocks.0.1.a", "diffusion_model.output_blocks.1.1.a", "diffusion_model.middle.a"]
    settings = Refinement(layer_prior=1.5)
    at = StepContext(0, 10)
    assert [settings.preference(name, at, "SDXL") for name in names] == [1.5, -1.5, 0.0]
    for others in ("FLUX", ""):
        assert [settings.preference(name, at, others) for name in names] == [0.0, 0.0, 0.0]


def test_smoothing_is_an_exponential_mean_over_steps():
    bench = Bench(KLSoft(tokens=0), Refinement(smoothing=0.6))
    mean = None
    for step in range(4):
        x = inputs(step)
        (decision,), _ = bench.step(step, x)
        raw = bench.log_ratio(x, "half_variance")
        mean = raw if mean is None else 0.6 * mean + 0.4 * raw
        torch.testing.assert_close(subject_weight(decision)[:, 0, 0], torch.sigmoid(mean / 0.5), rtol=1e-4, atol=1e-5)


def test_a_second_call_in_a_step_smooths_with_the_step_before_too():
    """Samplers that call the model twice a step (Heun) must not smooth twice as fast."""
    once, twice = (Bench(KLSoft(tokens=0), Refinement(smoothing=0.6)) for _ in range(2))
    once.step(0, inputs(0))
    twice.step(0, inputs(0))
    twice.step(1, inputs(7))
    (a,), _ = once.step(1, inputs(1))
    (b,), _ = twice.step(1, inputs(1))
    assert torch.equal(subject_weight(a), subject_weight(b))


def test_hysteresis_keeps_the_winner_of_a_close_call():
    x = {
        winner: next(i for i in (inputs(seed, 1) for seed in range(99)) if condition(i))
        for winner, condition in {
            "subject": lambda i: Bench(Paper(), Refinement()).log_ratio(i, "kl").item() > 0.5,
            "style, barely": lambda i: -0.3 < Bench(Paper(), Refinement()).log_ratio(i, "kl").item() < -0.01,
        }.items()
    }
    for bonus, expected in ((0.0, 0.0), (0.5, 1.0)):
        bench = Bench(Paper(), Refinement(hysteresis=bonus))
        bench.step(0, x["subject"])
        (decision,), _ = bench.step(1, x["style, barely"])
        assert subject_weight(decision).item() == expected


def test_even_out_takes_out_the_mean_over_layers():
    names, x = [f"l{i}" for i in range(5)], inputs(1)
    bench = Bench(KLSoft(tokens=0), Refinement(even_out=1.0), names, sizes=(5.0, 1.0))
    first, _ = bench.step(0, x)
    logits = torch.stack([torch.logit(subject_weight(d)[:, 0, 0]) * 0.5 for d in first])
    raw = torch.stack([bench.log_ratio(x, "half_variance", i) for i in range(5)])
    # The first step knows the files' weights alone: the middle of log(5^2 ||dW_c||^2 / ||dW_s||^2).
    energies = [layer.segment_deltas(layer.segments[0]) for layer in bench.layers]
    prior = torch.tensor([math.log(d.energy("subject") / d.energy("style")) for d in energies]).median()
    torch.testing.assert_close(logits, raw - prior, rtol=1e-3, atol=1e-3)
    second, _ = bench.step(1, x)
    logits = torch.stack([torch.logit(subject_weight(d)[:, 0, 0]) * 0.5 for d in second])
    torch.testing.assert_close(logits, raw - raw.mean(0), rtol=1e-3, atol=1e-3)


def test_follow_cond_gives_the_negative_prompt_the_positive_ones_last_decision():
    bench = Bench(KLSoft(tokens=0), Refinement(follow_cond=True))
    x = torch.cat([inputs(1), inputs(2)])
    keys = ("negative.0", "positive.0")
    (first,), _ = bench.step(0, x, keys)
    (second,), _ = bench.step(1, torch.cat([inputs(3), inputs(4)]), keys)
    assert torch.equal(subject_weight(second)[:2], subject_weight(first)[2:])
    assert not torch.equal(subject_weight(second)[2:], subject_weight(first)[2:])


@pytest.mark.parametrize(
    "refinement",
    [
        Refinement(smoothing=0.6, even_out=0.7, follow_cond=True),
        Refinement(granularity="token", smoothing=0.5),
        Refinement(granularity="head", hysteresis=0.4),
    ],
    ids=["layer", "token", "head"],
)
def test_packing_conditions_changes_nothing(refinement):
    def run(packed):
        bench = Bench(KLSoft(tokens=0), refinement, ["a", "b"], head_width=4)
        found = []
        for step in range(3):
            positive, negative = inputs(2 * step), inputs(2 * step + 1)
            if packed:
                _, outputs = bench.step(step, torch.cat([negative, positive]), ("negative.0", "positive.0"))
                found += [o[2:] for o in outputs] + [o[:2] for o in outputs]
            else:
                _, second = bench.step(step, negative, ("negative.0",))
                _, first = bench.step(step, positive, ("positive.0",))
                found += first + second
        return found

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_heads_are_decided_apart():
    bench = Bench(KLSoft(tokens=0), Refinement(granularity="head"), head_width=4)
    x = inputs(1)
    (decision,), (out,) = bench.step(0, x)
    base, deltas = F.linear(x, bench.weight), bench.layers[0].segment_deltas(bench.layers[0].segments[0])
    h = {role: F.linear(x, deltas.dense(role)) for role in ("subject", "style")}
    expected = base.clone()
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        c, s = (SCORES["half_variance"](base[..., part], h[role][..., part]) for role in ("subject", "style"))
        w = torch.sigmoid((c / s).log() / 0.5)
        torch.testing.assert_close(decision.weights["subject"][:, 0, head], w, rtol=1e-4, atol=1e-5)
        w = w[:, None, None]
        expected[..., part] += w * h["subject"][..., part] + (1 - w) * h["style"][..., part]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_tokens_are_decided_apart_and_smoothed():
    bench = Bench(KLSoft(tokens=0), Refinement(granularity="token", blur=0.0))
    x = inputs(1)
    _, (out,) = bench.step(0, x)
    base, deltas = F.linear(x, bench.weight), bench.layers[0].segment_deltas(bench.layers[0].segments[0])
    c, s = (
        SCORES["half_variance"](base[:, :, None], F.linear(x, deltas.dense(role))[:, :, None])
        for role in ("subject", "style")
    )
    w = torch.sigmoid((c / s).log() / 0.5)[..., None]
    expected = base + w * F.linear(x, deltas.dense("subject")) + (1 - w) * F.linear(x, deltas.dense("style"))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    smooth = Bench(KLSoft(tokens=0), Refinement(granularity="token", blur=50.0))
    (decision,), (evened,) = smooth.step(0, x)
    w = torch.sigmoid((c.mean(1) / s.mean(1)).log() / 0.5)
    torch.testing.assert_close(decision.weights["subject"][:, 0, 0], w, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(evened, out)


def test_grouped_projections_share_the_first_ones_decision():
    names = ["b.attn1.to_q", "b.attn1.to_k", "b.attn1.to_v", "b.attn1.to_out.0", "b.ff"]
    groups = ["b.attn1:qk", "b.attn1:qk", "b.attn1:vo", "b.attn1:vo", None]
    bench = Bench(KLSoft(tokens=0), Refinement(group_attention=True), names, groups=groups)
    decisions, _ = bench.step(0, inputs(1))
    q, k, v, out, ff = (subject_weight(d) for d in decisions)
    assert torch.equal(q, k) and torch.equal(v, out)
    assert not torch.equal(q, v) and not torch.equal(v, ff)


def test_floor_bounds_all_policies():
    for policy in (KLSoft(temperature=0.01), Paper(), Chance()):
        (decision,), _ = Bench(policy, Refinement(floor=0.2)).step(0, inputs(1))
        values = [torch.as_tensor(w) for w in decision.weights.values()]
        assert min(float(w.min()) for w in values) == pytest.approx(0.2, abs=1e-6)
        assert max(float(w.max()) for w in values) == pytest.approx(1.0, abs=1e-3)


def test_outside_its_window_both_loras_are_whole():
    bench, x = Bench(Paper(), Refinement(start=0.3, end=0.7)), inputs(1)
    routed = [bench.step(step, x)[0][0].weights for step in range(10)]
    whole = [all(isinstance(w, float) and w == 1.0 for w in weights.values()) for weights in routed]
    assert whole == [True] * 3 + [False] * 5 + [True] * 2


def test_cap_limits_what_both_add_to_the_louder_one():
    x = inputs(1)
    bench = Bench(Chance(subject_share=1.0), Refinement(floor=1.0, cap=0.8))
    _, (out,) = bench.step(0, x)
    base, deltas = F.linear(x, bench.weight), bench.layers[0].segment_deltas(bench.layers[0].segments[0])
    h = [F.linear(x, deltas.dense(role)) for role in ("subject", "style")]
    added, louder = (out - base).flatten(1).norm(dim=1), torch.maximum(*(d.flatten(1).norm(dim=1) for d in h))
    assert ((h[0] + h[1]).flatten(1).norm(dim=1) > 0.8 * louder).all(), "the cap should bind"
    torch.testing.assert_close(added, 0.8 * louder, rtol=1e-4, atol=1e-4)


def test_neutral_settings_are_no_settings():
    assert Refinement().settings() == {}
    assert Refinement(floor=0.3, follow_cond=True).settings() == {"floor": 0.3, "follow_cond": True}


@pytest.mark.parametrize("its", settings_of(Refinement), ids=lambda its: its.name)
def test_each_setting_takes_its_range_and_no_more(its):
    good, bad = [its.default], []
    if its.options:
        good, bad = list(its.options), ["something else"]
    elif not isinstance(its.default, bool):
        low, high = its.allowed or (its.least, its.most)
        assert low <= its.least <= its.default <= its.most <= high and its.step != 0
        good, bad = (
            [low, its.least, its.most, high],
            [math.nan, *(end for end in (low - 1e-6, high + 1e-6) if end not in (low, high))],
        )
    for value in good:
        assert getattr(Refinement(**{its.field: value}), its.field) == value
    for value in bad:
        with pytest.raises(ValueError, match=its.name):
            Refinement(**{its.field: value})


@pytest.mark.parametrize(
    "wrong", [{"score": "x"}, {"granularity": "pixel"}, {"floor": 1.5}, {"smoothing": 1.0}, {"cap": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Refinement(**wrong)
