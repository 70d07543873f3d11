"""A layer's output as each role alone moves it, at the tokens that are looked at, against what the layer adds."""

import pytest
import torch
import torch.nn.functional as F

from lora_conductor.fusion.adapters import LowRankDelta
from lora_conductor.fusion.layers import FusedLayer, Part
from lora_conductor.fusion.layers.layer import Geometry
from lora_conductor.fusion.layers.tokens import take
from lora_conductor.fusion.roles import ROLES

TOKENS = 6
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}


def looked_at(layer, x, base):
    """Probes of segments alone, and of the segments that are looked at together."""
    probes, joints = {}, []

    def decide(segment, probe):
        probes[segment.name] = probe
        return {}

    def together(joint):
        joints.append(joint)

    layer.fuse(x, base, decide, together=together)
    return probes, joints


def expected(base, delta, tokens):
    """``[5, batch, tokens, channels]``: as it is, with the subject's, with the style's, and twice as it is."""
    parts = [base, base + delta["subject"], base + delta["style"], base, base]
    return torch.stack([take(part.float(), tokens) for part in parts])


def layer_of(geometry, ranks, dtype, parts=()):
    width = geometry.weight_shape[1:]
    deltas = [
        (role, 1.0, LowRankDelta(torch.randn(rank, *width), torch.randn(geometry.out_features, rank)))
        for role, rank in zip(ROLES, ranks, strict=True)
    ]
    return FusedLayer("l", geometry, deltas, dtype, parts=parts), {role: d.dense().float() for role, _, d in deltas}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [0, TOKENS])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 5)], ids=str)
@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)], ids=str)
def test_one_segment(kernel, ranks, tokens, dtype):
    geometry = Geometry(8, 12, kernel, *([(1, 1), (kernel[0] // 2,) * 2, (1, 1)] if kernel else []))
    layer, dense = layer_of(geometry, ranks, dtype)
    run = F.conv2d if kernel else F.linear
    more = {"padding": kernel[0] // 2} if kernel else {}
    x = torch.randn(*((2, 8, 3, 4) if kernel else (2, 12, 8))).to(dtype)
    base = run(x, torch.randn(geometry.weight_shape).to(dtype), **more)
    added = {role: geometry.tokens(run(x.float(), d, **more)) for role, d in dense.items()}
    wanted = expected(geometry.tokens(base).float().clone(), added, tokens)
    probes, _ = looked_at(layer, x, base.clone())
    probes["l"].base = geometry.tokens(base)
    found = probes["l"].moved(1, 2, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [0, TOKENS])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 5)], ids=str)
@pytest.mark.parametrize("widths", [(4, 4, 4), (4, 4, 4, 8), (4, 6)], ids=str)
def test_neighbouring_segments(widths, ranks, tokens, dtype):
    borders = [sum(widths[:i]) for i in range(len(widths) + 1)]
    parts = [Part(a, b, "q") for a, b in zip(borders, borders[1:], strict=False)]
    layer, dense = layer_of(Geometry(8, borders[-1]), ranks, dtype, parts)
    x = torch.randn(2, 12, 8).to(dtype)
    base = F.linear(x, torch.randn(borders[-1], 8).to(dtype))
    added = {role: F.linear(x.float(), d) for role, d in dense.items()}
    _, (joint,) = looked_at(layer, x, base.clone())
    joint.base = base
    seen = 0
    for first, last, channels in joint.alike():
        found = joint.moved(1, 2, take(joint.hidden, tokens), first, last, channels, tokens)
        for i, found_of_one in enumerate(found.chunk(last - first, 1), first):
            own = slice(borders[i], borders[i + 1])
            wanted = expected(base[..., own].float(), {role: d[..., own] for role, d in added.items()}, tokens)
            torch.testing.assert_close(found_of_one, wanted, rtol=TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])
            seen += 1
    assert seen == len(widths)
