"""What files have in them that is odd, and the chains of loaders in which they are tried.

An oddity changes the tensors of a file by layer; the chains say on which loaders it and its companions stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter_files import Maker

Shape = tuple[int, ...]
Layers = dict[str, dict[str, Tensor]]
Change = Callable[[Layers, dict[str, Shape]], Layers]

# A loader of ours with a subject and a style LoRA, or core's with one. "odd" is the file of the cell, the others are
# plain LoRAs.
Ours = tuple[str, str]
Chain = tuple[Ours | str, ...]
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
PAIR: Chain = (("odd", "plain"),)
ALONE: Chain = (("odd", ""),)


def _alpha(change: Callable[[int, Tensor], Tensor | None]) -> Change:
    """Another alpha, or none, by the number of the layer."""

    def changed(layers: Layers, shapes: dict[str, Shape]) -> Layers:
        found: Layers = {}
        for number, (prefix, tensors) in enumerate(layers.items()):
            own = {name: value for name, value in tensors.items() if name != "alpha"}
            alpha = change(number, tensors["alpha"])
            found[prefix] = own if alpha is None else own | {"alpha": alpha}
        return found

    return changed


def _dtypes(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    """Every tensor in the next of three."""
    turn = (torch.bfloat16, torch.float16, torch.float32)
    number = iter(range(10**6))
    return {
        prefix: {name: value.to(turn[next(number) % 3]) for name, value in tensors.items()}
        for prefix, tensors in layers.items()
    }


def _victim(tensors: Callable[[Shape], dict[str, Tensor]]) -> Change:
    """One layer in the middle is of another kind."""

    def changed(layers: Layers, shapes: dict[str, Shape]) -> Layers:
        victim = victim_of(layers)
        return layers | {victim: tensors(shapes[victim])}

    return changed


def victim_of(layers: Layers | dict[str, Shape]) -> str:
    """The layer that an oddity of one layer is about."""
    return list(layers)[len(layers) // 2]


def _rank_0(shape: Shape) -> dict[str, Tensor]:
    ones = [1] * len(shape[2:])
    return {"lora_up.weight": torch.zeros(shape[0], 0, *ones), "lora_down.weight": torch.zeros(0, *shape[1:])}


def _unused(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    """NaN for a text encoder that is not connected, and for a layer that the model does not have."""

    def bad() -> dict[str, Tensor]:
        return {name: torch.full((4, 4), torch.nan) for name in ("lora_up.weight", "lora_down.weight")}

    return layers | {TEXT: bad(), "somebody.elses": bad()}


def _every_other(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    return dict(list(layers.items())[::2])


def _text_only(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    weights = Maker(7).lora((64, 64))
    return {TEXT: weights}


def _ranks(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    maker = Maker(8)
    return {prefix: maker.lora(shapes[prefix], rank=1 + number % 7) for number, prefix in enumerate(layers)}


def _set_weight(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    """Every third layer is replaced; the host has such keys for whole weights."""
    maker = Maker(9)
    return layers | {
        prefix: {"set_weight": maker.normal(*shapes[prefix], std=maker.fan(shapes[prefix]))}
        for prefix in list(layers)[::3]
    }


def _control(layers: Layers, shapes: dict[str, Shape]) -> Layers:
    """The first layer gets twice its inputs, as in FLUX's control LoRAs."""
    prefix = next(prefix for prefix in shapes if prefix.endswith("img_in"))
    out, width = shapes[prefix]
    reshape = torch.tensor([out, 2 * width])
    return layers | {prefix: Maker(10).lora((out, 2 * width)) | {"reshape_weight": reshape}}


@dataclass(frozen=True)
class Oddity:
    """Something odd about a file, or about how it is loaded.

    Attributes:
        change: makes the file's layers odd.
        chains: of loaders, each of which is compared with core's loaders in the same order.
        of_alpha: whether it is about alphas, which not every kind of adapter has.
        only: names of the kinds of adapter that it is tried with; all if empty.
        generic: whether it needs core's generic keys for whole weights.
        model: the only family that has such files, if any.
        of_one_layer: whether one layer alone is odd.
        static: whether the plain sum is also tried as core's patches, in the chains' order.
    """

    change: Change = lambda layers, shapes: layers
    chains: tuple[Chain, ...] = (PAIR, ALONE)
    of_alpha: bool = False
    only: tuple[str, ...] = ()
    generic: bool = False
    model: str = ""
    of_one_layer: bool = False
    static: bool = False


INF = float("inf")
ODDITIES = {
    "none": Oddity(),
    "alpha missing": Oddity(_alpha(lambda number, alpha: None), of_alpha=True),
    "alpha 0": Oddity(_alpha(lambda number, alpha: alpha * (number % 2)), of_alpha=True),
    "alpha inf": Oddity(_alpha(lambda number, alpha: alpha * INF), of_alpha=True),
    "alpha [1]": Oddity(_alpha(lambda number, alpha: alpha.reshape(1)), of_alpha=True),
    "mixed dtypes": Oddity(_dtypes),
    "NaN unused": Oddity(_unused),
    "core's before": Oddity(chains=(("third", ("odd", "plain")), ("third", ("", "odd")))),
    "core's behind": Oddity(
        chains=((("odd", "plain"), "third"), (("odd", ""), "third"), (("plain", "third"), "odd")), static=True
    ),
    "disjoint": Oddity(_every_other, chains=((("odd", "rest"),),)),
    "rank 0": Oddity(_victim(_rank_0), only=("lora",)),
    "rank 0, alpha": Oddity(
        _victim(lambda shape: _rank_0(shape) | {"alpha": torch.tensor(1.0)}), only=("lora",), of_one_layer=True
    ),
    "zero-size": Oddity(_victim(lambda shape: {"diff": torch.zeros(0)}), only=("lora",), of_one_layer=True),
    "per-layer ranks": Oddity(_ranks, only=("lora",)),
    "text encoder only": Oddity(_text_only, chains=(ALONE,), only=("lora",)),
    "set_weight": Oddity(
        _set_weight,
        chains=(PAIR, (("plain", "odd"),), ALONE, (("plain", "third"), "odd"), ("odd", ("plain", "third"))),
        generic=True,
        static=True,
    ),
    "control LoRA": Oddity(
        _control,
        chains=(
            (("plain", "odd"),),
            ALONE,
            (("plain", "third"), "odd"),
            (("plain", ""), "odd"),
            ("odd", ("plain", "")),
        ),
        generic=True,
        model="Flux",
        static=True,
    ),
}
