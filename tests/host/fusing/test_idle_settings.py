"""Settings without effect are named, in the loader's report and in the run's."""

from __future__ import annotations

import pytest

from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, KLSoft
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.core import blocks_of, family_of
from lora_conductor.host.fusing import attachment_of, fused
from lora_conductor.host.fusing.idle import without_effect

from .. import tiny
from ..families.catalogue import FAMILIES
from ..families.family import build

HEADS = KLSoft(), Refinement(granularity="head")
GROUPS = KLSoft(), Refinement(group_attention=True)
PRIOR = KLSoft(), Refinement(layer_prior=1.0)


def said(name, folder, policy, refinement, only=""):
    if not FAMILIES[name].in_host:
        pytest.skip(f"this ComfyUI has no {name}")
    model = build(FAMILIES[name])
    shapes = {key: shape for key, shape in tiny.layer_shapes(model, conv=False).items() if only in key}
    files = [tiny.make_lora(folder / f"{name}{i}.safetensors", shapes, seed=i, rank=2) for i in range(2)]
    return "\n".join(without_effect(attachment_of(fused(model, *files, policy, refinement)).spec))


@pytest.mark.parametrize(
    ("name", "asked", "only", "line"),
    [
        ("SD15", PRIOR, "", "layer_prior does nothing"),
        ("SDXL", PRIOR, "", ""),
        ("Flux", PRIOR, "", ""),
        ("HunyuanVideo", PRIOR, "", "layer_prior does nothing"),
        ("SD15", (POLICIES["block_mask"](), Refinement()), "", "'block_mask' keeps both LoRAs whole"),
        ("Flux", (POLICIES["block_mask"](), Refinement()), "", ""),
        ("Flux", HEADS, "", "granularity head: "),
        ("Flux", HEADS, ".qkv", ""),
        ("Flux", HEADS, "_mlp", "granularity head does nothing"),
        ("Hunyuan3Dv2_1", HEADS, "attn", "granularity head does nothing"),
        ("Flux", GROUPS, "", "group_attention: "),
        ("Flux", GROUPS, "_mlp", "group_attention does nothing"),
        ("Flux", (RECOMMENDED, Refinement(blur=3.0)), "", "blur does nothing"),
        ("SD15", (KLSoft(), Refinement(granularity="token")), "", "layers see words"),
        ("SD15", (POLICIES["ties"](), Refinement(cap=1.0)), "", "cap does nothing: 'ties' has no use for it"),
        ("SD15", (RECOMMENDED, Refinement()), "", ""),
    ],
)
def test_a_setting_without_effect_is_said(tmp_path, name, asked, only, line):
    found = said(name, tmp_path, *asked, only)
    assert (line in found) if line else not found, found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_called_what_the_host_calls_it(name):
    if not FAMILIES[name].in_host:
        pytest.skip(f"this ComfyUI has no {name}")
    model = build(FAMILIES[name]).model
    assert family_of(model) == name
    known = {"SDXL": ["SDXL", "SDXL_instructpix2pix"], "FLUX": ["Flux", "FluxInpaint", "FluxSchnell"]}
    assert blocks_of(model) == next((blocks for blocks, families in known.items() if name in families), "")
