"""LoRA files that touch attention alone: what a file with fewer layers does beside one with all of them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from repo_paths import OUTPUT

FOLDER = OUTPUT / "quality" / "attention_loras"
SLICE = "lora_transformer_single_transformer_blocks_{}_attn_to_{}"


def attention_only(path: Path) -> Path:
    """The file with queries, keys, values and outputs of attention only, in an ignored folder.

    Of single blocks, whose `linear1` makes queries, keys, values and the MLP's input at once, the first three stay,
    each as an entry of its own, as trainers write them that aim at `to_q`, `to_k` and `to_v`. Their `linear2` goes.

    path: LoRA of all linear layers of a FLUX-shaped model, with kohya's keys.
    """
    weights, made = load_file(path), dict[str, Tensor]()
    for key, value in weights.items():
        layer, _, rest = key.partition(".")
        if "_attn_" in layer:
            made[key] = value
        elif "single_blocks" in layer and layer.endswith("linear1"):
            block, width = layer.split("_")[-2], weights[f"{layer}.lora_down.weight"].shape[1]
            for i, part in enumerate("qkv"):
                rows = value[i * width : (i + 1) * width] if rest == "lora_up.weight" else value
                made[f"{SLICE.format(block, part)}.{rest}"] = rows.clone()
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{path.stem}_attention.safetensors"
    save_file(made, file)
    return file
