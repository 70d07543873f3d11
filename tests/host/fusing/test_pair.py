"""What the loader's report says of a pair before sampling, against dense updates in float64."""

from __future__ import annotations

import math
import statistics
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.adapters import Geometry, LowRankDelta
from lora_conductor.fusion.layers import FusedLayer
from lora_conductor.fusion.policies import POLICIES, Sum
from lora_conductor.fusion.routing import NAMED
from lora_conductor.host.fusing import attachment_of, fused
from lora_conductor.host.fusing.pair import WORK, _work, norms_of, pair_of, said_of_pair, what_follows
from lora_conductor.host.fusing.spec import DeltaBank, FusionSpec

from .. import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.world_flux()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder, shapes = tmp_path_factory.mktemp("loras"), tiny.layer_shapes(model)
    some = {key: shape for i, (key, shape) in enumerate(shapes.items()) if i % 3}
    subject = tiny.make_lora(folder / "subject.safetensors", shapes, seed=1)
    style = tiny.make_lora(folder / "style.safetensors", some, seed=2, size=1.0, rank=6)
    return subject, style


def dense(file):
    """By layer the update that a plain file makes, in float64."""
    tensors, made = load_file(file), {}
    for key in tensors:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            down, up = tensors[key].double().flatten(1), tensors[f"{name}.lora_up.weight"].double().flatten(1)
            made[name] = up @ down * (float(tensors[f"{name}.alpha"]) / len(down))
    return made


def spec_of(model, *files, policy=None):
    return attachment_of(fused(model, *files, policy=policy)).spec


def test_figures_are_those_of_the_dense_updates(model, files):
    spec = spec_of(model, (files[0], 0.5), (files[1], 2.0))
    pair, (subject, style) = pair_of(spec), map(dense, files)
    both = [segment for layer in spec.layers for segment in layer.segments if segment.shared]
    cut = [tuple(whole[s.name.partition("[")[0]][s.start : s.stop] for whole in (subject, style)) for s in both]
    assert pair.measured == pair.shared == len(both) > 30
    ratios = [float(a.norm() / b.norm()) for a, b in cut]
    assert pair.loudness == pytest.approx(math.exp(statistics.median(map(math.log, ratios))), rel=1e-3)
    flat = [torch.cat([piece[i].flatten() for piece in cut]) for i in (0, 1)]
    assert pair.cosine == pytest.approx(float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()), abs=1e-5)
    cosines = {s.name: float((a * b).sum() / a.norm() / b.norm()) for s, (a, b) in zip(both, cut, strict=True)}
    name, furthest = pair.closest
    assert furthest == pytest.approx(cosines[name], abs=1e-5)
    assert abs(furthest) == pytest.approx(max(map(abs, cosines.values())), abs=1e-5)
    norms = norms_of(spec)
    for role, whole, strength in (("subject", subject, 0.5), ("style", style, 2.0)):
        expected = strength * math.sqrt(sum(float(one.square().sum()) for one in whole.values()))
        assert norms[role] == pytest.approx(expected, rel=1e-3)


def test_a_file_beside_itself_and_beside_its_opposite(model, files):
    same = spec_of(model, files[0], files[0])
    assert pair_of(same).cosine == pytest.approx(1, abs=1e-5) and pair_of(same).loudness == pytest.approx(1, abs=1e-4)
    assert any("counts twice" in line for line in said_of_pair(same))
    against = spec_of(model, files[0], (files[0], -1.0))
    assert pair_of(against).cosine == pytest.approx(-1, abs=1e-5)
    assert any("undo each other" in line for line in said_of_pair(against))


def test_what_follows_depends_on_the_policy(model, files):
    for name, expected in {
        "recommended": "recommended evens that out",
        "balanced": "evens that out",
        "sum": "sum leaves that: the style leads",
        "paper": "paper may give the style nearly everything: even_out 1",
    }.items():
        spec = spec_of(model, *files, policy=NAMED[name])
        assert expected in next(what_follows(spec, pair_of(spec))), name


@pytest.mark.parametrize("strengths", [(1e30, 1.0), (1e-30, 1e30), (1e38, 1e38)])
def test_strengths_beyond_all_use_are_no_error(model, files, strengths):
    spec = spec_of(model, (files[0], strengths[0]), (files[1], strengths[1]))
    assert not any("nan" in line for line in said_of_pair(spec)) and all(norm > 0 for norm in norms_of(spec).values())


def test_speaks_under_every_policy(model, files):
    for name in POLICIES:
        spec = spec_of(model, *files, policy=NAMED[name])
        assert len(list(said_of_pair(spec))) == 6


def test_a_file_that_is_hardly_there_is_said(model, files, tmp_path):
    tensors = load_file(files[0])
    faint = {key: value * 1e-3 if "lora_up" in key else value for key, value in tensors.items()}
    save_file(faint, tmp_path / "faint.safetensors")
    spec = spec_of(model, tmp_path / "faint.safetensors", files[0])
    assert any("beside the style's file the other is hardly there" in line for line in said_of_pair(spec))


def test_other_adapters_are_not_compared_and_said(model, files, tmp_path):
    key = "diffusion_model.double_blocks.0.img_attn.proj"
    width = tiny.layer_shapes(model)[f"{key}.weight"]
    save_file({f"{key}.diff": torch.randn(width)}, tmp_path / "dense.safetensors")
    spec = spec_of(model, tmp_path / "dense.safetensors", files[0])
    assert pair_of(spec) is None and "not compared before sampling" in list(said_of_pair(spec))[-1]
    assert "subject" not in norms_of(spec) and "style" in norms_of(spec)


def test_large_pairs_are_measured_in_a_part_of_their_layers(model, files):
    spec = spec_of(model, *files)
    whole, part = pair_of(spec), pair_of(spec, work=3e5)
    assert 0 < part.measured < whole.measured / 2 and part.shared == whole.shared
    assert part.cosine == pytest.approx(whole.cosine, abs=0.02)


PART = 10  # of SDXL's layers, one in so many: all of them are much memory


def sdxl_pair(rank):
    """Both roles on a part of the layers that SDXL has, as wide as there."""
    shapes = []
    for width, blocks in ((640, 10 // PART), (1280, 60 // PART)):
        square = [(width, width)] * 6 * blocks + [(width, 2048)] * 2 * blocks
        shapes += [*square, *[(8 * width, width)] * blocks, *[(width, 4 * width)] * blocks]
    layers = []
    for i, (out, into) in enumerate(shapes):
        deltas = [
            (role, 1.0, LowRankDelta(torch.randn(rank, into), torch.randn(out, rank))) for role in ("subject", "style")
        ]
        layers.append(FusedLayer(f"diffusion_model.blocks.{i}", Geometry(into, out), deltas))
    return FusionSpec((), Sum(), tiny.patcher(DeltaBank(layers)))


def test_costs_a_part_of_a_second_on_sdxl(record_property):
    spec = sdxl_pair(16)
    start = time.process_time()
    lines = list(said_of_pair(spec))
    took = PART * (time.process_time() - start)
    record_property("seconds, report on a pair of rank 16 on SDXL's layers", took)
    assert len(lines) == 6 and took < 2, "a quarter of it on an idle machine"
    work = PART * sum(_work(layer, segment) for layer in spec.layers for segment in layer.segments)
    assert WORK / 2 < work < WORK, "all layers are measured, but not of pairs of twice the rank"
