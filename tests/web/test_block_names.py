"""Names of blocks on the map, by the page's own code."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from lora_conductor.host.maps import block_of
from repo_paths import REPO

NAMES = {
    "diffusion_model.blocks.3.self_attn.q": ("blocks.3", "block 3"),
    "diffusion_model.transformer_blocks.12.attn.to_q": ("transformer_blocks.12", "block 12"),
    "diffusion_model.blocks.block7.blocks.0.block.attn.to_q.0": ("blocks.block7", "block 7"),
    "diffusion_model.double_blocks.3.img_attn.qkv[0:64]": ("double_blocks.3", "double 3"),
    "diffusion_model.input_blocks.8.1.proj_in": ("input_blocks.8", "input 8"),
    "diffusion_model.layers.4.attention.qkv": ("layers.4", "layers 4"),
    "diffusion_model.final_layer.linear": ("final_layer", "final layer"),
}


def test_in_the_picture_and_the_report():
    assert {layer: block_of(layer) for layer in NAMES} == {layer: block for layer, (block, _) in NAMES.items()}


def test_on_the_page():
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    code = f"import {{ blockOf, blockLabel }} from '{(REPO / 'web/js/blocks.js').as_uri()}'\n"
    code += f"console.log(JSON.stringify({json.dumps(list(NAMES))}.map((l) => [blockOf(l), blockLabel(blockOf(l))])))"
    done = subprocess.run([node, "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert [tuple(pair) for pair in json.loads(done.stdout)] == list(NAMES.values())
