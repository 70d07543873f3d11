"""A layer that holds queries, keys and values is decided in its parts, however the file names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.layers import whole_of
from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, KLSoft, Paper
from lora_conductor.fusion.records import Plan, PlannedCall, loads
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.fusing import attachment_of, fused, replaying
from lora_conductor.host.fusing.results import plan_of_latent, record_of_latent

from .. import tiny

CLOSE = 1e-5  # of the output's range, float32


def sliced(path: Path, into: Path) -> Path:
    """The same content in FLUX's diffusers dialect, whose queries, keys, values and MLP are layers of their own."""
    tensors, made = load_file(path), {}
    for key, value in tensors.items():
        name, _, kind = key.partition(".lora_")
        if ".alpha" in key:
            continue
        alpha = float(tensors[f"{name}.alpha"]) / tensors[f"{name}.lora_down.weight"].shape[0]
        for part, rows in _parts(name, tensors[f"{name}.lora_up.weight"].shape[0]):
            up = value[rows] * alpha if kind == "up.weight" else value
            made[f"{part}.lora_{'B' if kind == 'up.weight' else 'A'}.weight"] = up.clone()
    save_file(made, into)
    return into


def _parts(name, out):
    block, layer = name.removeprefix("diffusion_model.").split(".", 2)[1:]
    if name.startswith("diffusion_model.single_blocks"):
        prefix = f"transformer.single_transformer_blocks.{block}"
        if layer != "linear1":
            return [(f"{prefix}.proj_out", slice(None))]
        width = out // 7  # three of them and an MLP of four
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        starts = (0, width, 2 * width, 3 * width, out)
    else:
        prefix = f"transformer.transformer_blocks.{block}"
        if layer == "img_attn.proj":
            return [(f"{prefix}.attn.to_out.0", slice(None))]
        names = [
            f"attn.{n}"
            for n in (("to_q", "to_k", "to_v") if "img" in layer else ("add_q_proj", "add_k_proj", "add_v_proj"))
        ]
        starts = tuple(i * out // 3 for i in range(4))
    return [(f"{prefix}.{n}", slice(a, b)) for n, a, b in zip(names, starts, starts[1:], strict=False)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialects")
    shapes = {
        key: shape
        for key, shape in tiny.layer_shapes(tiny.tiny_flux()).items()
        if key.endswith((".linear1.weight", ".linear2.weight", "attn.qkv.weight", "img_attn.proj.weight"))
    }
    whole = [
        tiny.make_lora(folder / f"whole{i}.safetensors", shapes, seed=i, rank=4 + 2 * i, size=0.3) for i in range(2)
    ]
    cut = [sliced(path, folder / f"cut{i}.safetensors") for i, path in enumerate(whole)]
    return {"whole": whole, "cut": cut, "both": [whole[0], cut[1]]}


SETTINGS = {
    "recommended": (RECOMMENDED, Refinement()),
    "paper": (Paper(), Refinement()),
    "kl_soft": (KLSoft(), Refinement()),
    "k_lora": (POLICIES["k_lora"](), Refinement()),
    "ties": (POLICIES["ties"](), Refinement()),
    "heads": (KLSoft(), Refinement(granularity="head")),
    "groups": (KLSoft(), Refinement(group_attention=True, cap=1.0, smoothing=0.5)),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("other", ["cut", "both"])
def test_a_whole_and_a_sliced_file_give_the_same(files, name, other, record_property):
    model, made = tiny.tiny_flux(), {}
    for dialect in ("whole", other):
        routed = fused(model, *files[dialect], *SETTINGS[name])
        picture = tiny.sample(routed, steps=2, cfg=3.0)
        live = attachment_of(routed).live is not None
        made[dialect] = picture, *((record_of_latent(routed, picture), plan_of_latent(routed, picture)) if live else ())
    error = tiny.relative(made[other][0], made["whole"][0])
    record_property("picture, of the range", error)
    assert error < CLOSE
    if len(made["whole"]) == 1:
        return
    (_, record, plan), (_, its, planned) = made["whole"], made[other]
    assert any("linear1[" in layer for layer in record.layers) and any("qkv[" in layer for layer in record.layers)
    assert record.layers == its.layers and plan.layers == planned.layers
    torch.testing.assert_close(record.weights, its.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(record.scores, its.scores, rtol=1e-3, atol=1e-6, equal_nan=True)


def as_before(plan: Plan) -> tuple[Plan, Plan]:
    """A plan with one row for each whole layer, whose heads have weights of their own; and the same for its parts.

    Its parts share what the first of them had; where it is by heads, each has its own, and an MLP the mean of all.
    """
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(plan.layers):
        rows.setdefault(whole_of(name), []).append(i)

    def whole(weights):
        return [_joined([weights[i] for i in own]) for own in rows.values()]

    def parts(weights):
        joined = {i: _joined([weights[i] for i in own]) for own in rows.values() for i in own}
        return [
            weights[i] if _heads(weights[i]) > 1 else tuple(_mean(weight) for weight in joined[i])
            for i in range(len(plan.layers))
        ]

    def made(layers, of):
        calls = tuple(PlannedCall(c.step, c.condition, c.evaluation, tuple(of(c.weights))) for c in plan.calls)
        frozen = None if plan.frozen is None else tuple(of(plan.frozen))
        return Plan(plan.loras, plan.policy, plan.refinement, plan.sigmas, tuple(layers), calls, frozen)

    return made(rows, whole), made(plan.layers, parts)


def _mean(weight):
    return weight.mean(-1, keepdim=True) if isinstance(weight, torch.Tensor) else weight


def _heads(pair):
    return pair[0].shape[-1] if isinstance(pair[0], torch.Tensor) else 1


def _joined(pairs):
    if all(_heads(pair) == 1 for pair in pairs):
        return pairs[0]
    # An MLP in the layer had heads too, by the width of the others: four times as many as the queries.
    more = [pair if _heads(pair) > 1 else tuple(w.expand(-1, -1, 4 * _heads(pairs[0])) for w in pair) for pair in pairs]
    return tuple(torch.cat([pair[role] for pair in more], dim=-1) for role in range(2))


@pytest.mark.parametrize(
    "refinement",
    [Refinement(), Refinement(granularity="head", blur=0.0), Refinement(freeze_after=1, emphasis=1.0)],
    ids=["layers", "heads", "frozen"],
)
def test_a_plan_from_before_the_cuts_is_read(files, refinement):
    """It has one row for a whole layer: each part takes that, and of its heads those that are its own."""
    routed = fused(tiny.tiny_flux(), *files["whole"], KLSoft(), refinement)
    old, new = as_before(plan_of_latent(routed, tiny.sample(routed, steps=3)))
    assert len(old.layers) < len(new.layers)
    pictures = [tiny.sample(replaying(routed, loads(plan.dumps())), steps=3) for plan in (old, new)]
    assert tiny.relative(*pictures) < CLOSE
