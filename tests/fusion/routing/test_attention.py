"""Which projections share a decision, by the names that ComfyUI's model families use."""

import pytest

from lora_conductor.fusion.routing.attention import attention_group

TOGETHER = [
    ("in.1.transformer_blocks.0.attn1.to_q", "in.1.transformer_blocks.0.attn1.to_k"),
    ("in.1.transformer_blocks.0.attn1.to_v", "in.1.transformer_blocks.0.attn1.to_out.0"),
    ("blocks.3.self_attn.q", "blocks.3.self_attn.k"),
    ("blocks.3.self_attn.v", "blocks.3.self_attn.o"),
    ("blocks.3.attn.wq", "blocks.3.attn.wk"),
    ("blocks.3.self_attn.q_proj", "blocks.3.self_attn.k_proj"),
    ("double_blocks.0.img_attn.qkv[0:64]", "double_blocks.0.img_attn.qkv[64:128]"),
    ("single_blocks.0.linear1[0:64]", "single_blocks.0.linear1[64:128]"),
    ("transformer_blocks.0.attn.add_q_proj", "transformer_blocks.0.attn.add_k_proj"),
]
APART = [
    ("a.attn1.to_q", "a.attn1.to_v"),
    ("a.attn1.to_q", "a.attn2.to_q"),
    ("a.attn1.to_q", "b.attn1.to_k"),
    ("a.attn.to_q", "a.attn.add_q_proj"),
    ("double_blocks.0.img_attn.qkv[0:64]", "double_blocks.0.txt_attn.qkv[64:128]"),
    ("double_blocks.0.img_attn.qkv[64:128]", "double_blocks.0.img_attn.qkv[128:192]"),
]


@pytest.mark.parametrize(("one", "other"), TOGETHER)
def test_partners_share_a_group(one, other):
    assert attention_group(one) == attention_group(other) is not None


@pytest.mark.parametrize(("one", "other"), APART)
def test_others_do_not(one, other):
    assert attention_group(one) != attention_group(other)


@pytest.mark.parametrize(
    "name",
    ["a.ff.net.0.proj", "a.proj_in", "a.img_mlp.0", "a.attn.qkv", "single_blocks.0.linear1[192:448]", "x.out_layers.3"],
)
def test_what_is_no_projection_has_no_group(name):
    assert attention_group(name) is None
