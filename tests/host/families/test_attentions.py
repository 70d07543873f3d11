"""What the modules tell of attentions, against what the models do: every family that the host can build small."""

from __future__ import annotations

import pytest

from lora_conductor.host.core import attention_parts

from .catalogue import FAMILIES
from .family import build
from .truth import attentions

# Layers that feed an attention, or take what it gives, and are none of its parts for us; with the reason.
LEFT = {
    ".linear2": "FLUX's single blocks: the MLP's features go in beside the heads, and into all that comes out",
    "Hunyuan3Dv2_1": "queries, keys and values are joined and cut anew: no layer gives what it is called after",
    "StableAudio3": "a difference of two attentions",
    "cross_attn.to_add_out": "beside them",
    "cross_attn.add_": "ACE-Step has them, and calls them never",
    "face_adapter": "one token of a face in the small model: its keys and values cannot be told apart",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_are_what_the_model_makes_of_them(name, record_property):
    family = FAMILIES[name]
    if not family.in_host:
        pytest.skip(f"this ComfyUI has no {name}")
    model = build(family)
    ours, wrong = attention_parts(model.model), []
    seen, owners = {}, set()
    for call in attentions(family, model):
        owners.add(call.owner)
        for layer, parts in call.layers.items():
            its = seen.setdefault(layer, ({}, set()))
            its[0].update(parts)
            its[1].update({call.head} if parts.keys() - {"out"} else ())
    for layer, (parts, heads) in seen.items():
        mine = {part.kind: (part.start, part.stop) for part in ours.get(layer, ()) if part.kind != "mlp"}
        widths = {part.head_width for part in ours.get(layer, ()) if part.head_width is not None}
        if (mine, widths) != (parts, heads) and not any(left in f"{name}.{layer}" for left in LEFT):
            wrong.append(f"{layer}: {mine} of {widths}, not {parts} of {heads}")
    more = [
        layer
        for layer in ours.keys() - seen.keys()
        if any(layer.startswith(f"{owner}.") for owner in owners) and not any(left in layer for left in LEFT)
    ]
    record_property("projections", f"{len(seen)}")
    assert not wrong and not more, (wrong, more)
    assert seen or name == "Hunyuan3Dv2_1"


def test_every_layer_is_covered_from_end_to_end():
    model = build(FAMILIES["Flux"])
    for layer, parts in attention_parts(model.model).items():
        assert parts[0].start == 0
        assert all(one.stop == other.start for one, other in zip(parts, parts[1:], strict=False))
        assert parts[-1].stop == model.model.get_submodule(layer).out_features


@pytest.mark.parametrize(
    ("name", "one", "other", "together"),
    [
        ("SD15", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "...attn1.to_k", True),
        ("SD15", "input_blocks.1.1.transformer_blocks.0.attn1.to_v", "...attn1.to_out.0", True),
        ("SD15", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "...attn2.to_q", False),
        ("SD15", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "...attn1.to_v", False),
        ("QwenImage", "transformer_blocks.0.attn.add_v_proj", "...attn.to_add_out", True),
        ("QwenImage", "transformer_blocks.0.attn.to_q", "...attn.add_k_proj", False),
        ("HiDream", "double_stream_blocks.0.block.attn1.to_v_t", "...attn1.to_out_t", True),
        ("AuraFlow", "double_layers.0.attn.w1v", "...attn.w1o", True),
        ("AuraFlow", "double_layers.0.attn.w1q", "...attn.w2k", False),
        ("Kandinsky5", "visual_transformer_blocks.0.self_attention.to_query", "...self_attention.to_key", True),
        ("Krea2", "blocks.0.attn.wv", "...attn.wo", True),
        ("Lens", "transformer_blocks.0.attn.img_qkv", "...attn.to_out.0", True),
        ("WAN21_I2V", "blocks.0.cross_attn.q", "...cross_attn.k_img", True),
    ],
)
def test_partners_share_a_group(name, one, other, together):
    if not FAMILIES[name].in_host:
        pytest.skip(f"this ComfyUI has no {name}")
    ours = attention_parts(build(FAMILIES[name]).model)
    full = f"diffusion_model.{one}"
    partner = f"{full.rsplit('.', 2)[0]}.{other.removeprefix('...')}"
    groups = [{part.group for part in ours[layer]} for layer in (full, partner)]
    assert bool(groups[0] & groups[1]) is together, groups
