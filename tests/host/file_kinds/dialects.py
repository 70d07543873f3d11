"""How files name one layer: prefixes of the host's key maps, and the names of a plain LoRA's tensors behind them."""

from __future__ import annotations

import comfy.lora
from torch import Tensor

from lora_conductor.host.loras import Target

from ..families.bench import Bench, Shape

# Beginnings of prefixes in the key maps; the first that fits, so the bare ones come last.
HEADS = ("diffusion_model.", "lora_unet_", "lora_transformer_", "lycoris_", "unet.", "transformer.", "")
GENERIC = HEADS[0]
DIFFUSERS = ("unet.", "transformer.")
LAYERS = 8  # of a model, spread over it: more show nothing new

# Names of up- and down-projection in the file, which the host knows for plain LoRAs and their DoRA.
NAMINGS = {
    "kohya": ("{}.lora_up.weight", "{}.lora_down.weight"),
    "PEFT": ("{}.lora_B.weight", "{}.lora_A.weight"),
    "PEFT, named adapter": ("{}.lora_B.default.weight", "{}.lora_A.default.weight"),
    "diffusers": ("{}.lora.up.weight", "{}.lora.down.weight"),
    "diffusers, old": ("{}_lora.up.weight", "{}_lora.down.weight"),
    "transformers": ("{}.lora_linear_layer.up.weight", "{}.lora_linear_layer.down.weight"),
    "Mochi": ("{}.lora_B", "{}.lora_A"),
}
KOHYA = "kohya"


def prefixes_of(bench: Bench) -> dict[str, dict[str, Shape]]:
    """By head, the prefixes of layers with the shape that each is for; slices that do not overlap where there are."""
    found: dict[str, dict[str, Shape]] = {}
    taken: dict[tuple[str, str], list[range]] = {}
    keys = list(bench.shapes)
    chosen = set(keys[:: max(1, len(keys) // LAYERS)]) | {key for key in keys if key.endswith("img_in.weight")}
    for prefix, raw in comfy.lora.model_lora_keys_unet(bench.model().model, {}).items():
        target = Target(raw) if isinstance(raw, str) else Target(*raw)
        head = next(head for head in HEADS if prefix.startswith(head))
        shape = bench.shapes.get(target.key)
        if shape is None or target.key not in chosen or target.function is not None:
            continue
        dim, start, length = target.offset or (0, 0, shape[0])
        rows, others = range(start, start + length), taken.setdefault((head, target.key), [])
        if dim == 0 and rows.stop <= shape[0] and all(rows.start >= r.stop or rows.stop <= r.start for r in others):
            found.setdefault(head, {})[prefix] = (length, *shape[1:])
            others.append(rows)
    return found


def named(prefix: str, tensors: dict[str, Tensor], naming: str) -> dict[str, Tensor]:
    """A layer's tensors under the names that a file of that kind has for them."""
    names = dict(zip(("lora_up.weight", "lora_down.weight"), NAMINGS[naming], strict=True))
    return {names.get(leaf, f"{{}}.{leaf}").format(prefix): value for leaf, value in tensors.items()}
