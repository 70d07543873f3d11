"""Adapter files of every kind that ComfyUI loads, random but sensibly scaled, for weights of any shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]
Make = Callable[["Maker", Shape], dict[str, Tensor]]


class Maker:
    """Random factors for weights with entries of about ``spread / sqrt(fan_in)``; ``size`` goes with the delta's."""

    def __init__(self, seed: int, size: float = 0.5, spread: float = 1.0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.size, self.spread = size, spread

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * std

    def fan(self, shape: Shape) -> float:
        return math.prod(shape[1:]) ** -0.5

    def lora(self, shape: Shape, rank: int = 4) -> dict[str, Tensor]:
        return {
            "lora_up.weight": self.normal(shape[0], rank, *[1] * len(shape[2:]), std=self.size),
            "lora_down.weight": self.normal(rank, *shape[1:], std=self.fan(shape)),
            "alpha": torch.tensor(2.0),
        }

    def tucker(self, shape: Shape) -> dict[str, Tensor]:
        return {
            "lora_up.weight": self.normal(shape[0], 4, 1, 1, std=self.size),
            "lora_down.weight": self.normal(4, shape[1], 1, 1, std=shape[1] ** -0.5),
            "lora_mid.weight": self.normal(4, 4, *shape[2:], std=0.5 * math.prod(shape[2:]) ** -0.5),
        }

    def loha(self, shape: Shape, rank: int = 3) -> dict[str, Tensor]:
        width = math.prod(shape[1:])
        return {
            "hada_w1_a": self.normal(shape[0], rank),
            "hada_w1_b": self.normal(rank, width),
            "hada_w2_a": self.normal(shape[0], rank, std=self.size),
            "hada_w2_b": self.normal(rank, width, std=self.fan(shape) / rank),
            "alpha": torch.tensor(2.0),
        }

    def loha_dense(self, shape: Shape) -> dict[str, Tensor]:
        return self.loha(shape, rank=8)

    def loha_tucker(self, shape: Shape) -> dict[str, Tensor]:
        core = {f"hada_t{n}": self.normal(3, 3, *shape[2:], std=3**-0.5) for n in (1, 2)}
        return {
            **core,
            "hada_w1_a": self.normal(3, shape[0]),
            "hada_w1_b": self.normal(3, shape[1]),
            "hada_w2_a": self.normal(3, shape[0], std=self.size),
            "hada_w2_b": self.normal(3, shape[1], std=self.fan(shape) / 3),
            "alpha": torch.tensor(2.0),
        }

    def _split(self, shape: Shape) -> tuple[int, int, int, int]:
        a = next(n for n in (4, 3, 2, 1) if shape[0] % n == 0)
        b = next(n for n in (4, 3, 2, 1) if shape[1] % n == 0)
        return a, b, shape[0] // a, shape[1] // b

    def lokr(self, shape: Shape) -> dict[str, Tensor]:
        a, b, c, d = self._split(shape)
        return {
            "lokr_w1": self.normal(a, b),
            "lokr_w2": self.normal(c, d, *shape[2:], std=self.size * self.fan(shape)),
            "alpha": torch.tensor(1.0),
        }

    def lokr_factored(self, shape: Shape) -> dict[str, Tensor]:
        a, b, c, d = self._split(shape)
        width = d * math.prod(shape[2:])
        return {
            "lokr_w1_a": self.normal(a, 2),
            "lokr_w1_b": self.normal(2, b),
            "lokr_w2_a": self.normal(c, 3, std=self.size),
            "lokr_w2_b": self.normal(3, width, std=self.fan(shape)),
            "alpha": torch.tensor(1.0),
        }

    def lokr_tucker(self, shape: Shape) -> dict[str, Tensor]:
        a, b, c, d = self._split(shape)
        return {
            "lokr_w1": self.normal(a, b),
            "lokr_t2": self.normal(3, 3, *shape[2:], std=3**-0.5),
            "lokr_w2_a": self.normal(3, c, std=self.size),
            "lokr_w2_b": self.normal(3, d, std=self.fan(shape)),
            "alpha": torch.tensor(1.0),
        }

    def glora(self, shape: Shape, rank: int = 4) -> dict[str, Tensor]:
        return {
            "a1.weight": self.normal(shape[1], rank, std=self.size),
            "a2.weight": self.normal(rank, shape[1], std=shape[1] ** -0.5),
            "b1.weight": self.normal(shape[0], rank, std=self.size),
            "b2.weight": self.normal(rank, math.prod(shape[1:]), std=self.fan(shape)),
            "alpha": torch.tensor(2.0),
        }

    def glora_old(self, shape: Shape, rank: int = 3) -> dict[str, Tensor]:
        width = math.prod(shape[1:])
        return {
            "a2.weight": self.normal(width, rank, std=self.size),
            "a1.weight": self.normal(rank, width, std=width**-0.5),
            "b2.weight": self.normal(shape[0], rank, std=self.size),
            "b1.weight": self.normal(rank, width, std=self.fan(shape)),
            "alpha": torch.tensor(2.0),
        }

    def diff(self, shape: Shape) -> dict[str, Tensor]:
        return {"diff": self.normal(*shape, std=0.6 * self.size * self.fan(shape))}

    def oft(self, shape: Shape) -> dict[str, Tensor]:
        return {"oft_blocks": self.normal(4, shape[0] // 4, shape[0] // 4, std=0.02), "alpha": torch.tensor(2.0)}

    def boft(self, shape: Shape) -> dict[str, Tensor]:
        return {
            "oft_blocks": self.normal(2, shape[0] // 4, 4, 4, std=0.1),
            "rescale": 1 + self.normal(shape[0], *[1] * (len(shape) - 1), std=0.1),
            "alpha": torch.tensor(3.0),
        }

    def dora(self, shape: Shape, inside: Make, on_output: bool) -> dict[str, Tensor]:
        size = (shape[0], *[1] * (len(shape) - 1)) if on_output else (1, shape[1], *[1] * (len(shape) - 2))
        norm = self.spread * (1.0 if on_output else (shape[0] / shape[1]) ** 0.5)
        magnitude = norm * (1 + self.normal(*size, std=0.2))
        return {**inside(self, shape), "dora_scale": magnitude}


@dataclass(frozen=True)
class Kind:
    """One kind of adapter, and what is to be expected of it.

    Attributes:
        make: the tensors of a file for a weight of a shape, by name after the prefix.
        core: the class that core's loader makes of them; None for a plain difference.
        suits: whether there are such adapters for weights of a shape, and the host can apply them.
        additive: whether the delta is the same whatever the weight is.
        grouped: whether it is routed on grouped convolutions.
        partial: whether it is routed on a part of the input channels.
        tucker: whether it has a Tucker core, which is for two-dimensional convolutions.
        in_float32: whether core computes it in float32 whatever it is asked for.
        low_precision: its error on bfloat16 layers, over that of core's merge, at most.
    """

    make: Make
    core: str | None
    suits: Callable[[Shape], bool] = lambda shape: True
    additive: bool = True
    grouped: bool = True
    partial: bool = True
    tucker: bool = False
    in_float32: bool = False
    low_precision: float = 1.2

    def in_dora(self, on_output: bool) -> Kind:
        return replace(
            self,
            make=lambda maker, shape: maker.dora(shape, self.make, on_output),
            additive=False,
            grouped=self.grouped and on_output,
            partial=False,
            # Core multiplies rotations in a DoRA by alpha, which makes their deltas larger than the weights.
            low_precision=2.0 if self.in_float32 else 1.2,
        )


def _four_blocks(shape: Shape) -> bool:
    return shape[0] % 4 == 0 and shape[0] <= 2048  # each of them is inverted


def _butterflies(shape: Shape) -> bool:
    return shape[0] % 16 == 0


def _of_pictures(shape: Shape) -> bool:
    return len(shape) == 4


def _of_linear_layers(shape: Shape) -> bool:
    return len(shape) == 2


# On the weight.
_DEPENDENT: Any = {"additive": False, "grouped": False, "partial": False}

_ROWS = {
    "lora": Kind(Maker.lora, "LoRAAdapter"),
    "loha": Kind(Maker.loha, "LoHaAdapter"),
    "loha_dense": Kind(Maker.loha_dense, "LoHaAdapter"),
    "lokr": Kind(Maker.lokr, "LoKrAdapter"),
    "lokr_factored": Kind(Maker.lokr_factored, "LoKrAdapter"),
    "glora": Kind(Maker.glora, "GLoRAAdapter", **_DEPENDENT),
    "glora_old": Kind(Maker.glora_old, "GLoRAAdapter", _of_linear_layers, **_DEPENDENT),
    "diff": Kind(Maker.diff, None),
    "oft": Kind(Maker.oft, "OFTAdapter", _four_blocks, in_float32=True, **_DEPENDENT),
    "boft": Kind(Maker.boft, "BOFTAdapter", _butterflies, in_float32=True, **_DEPENDENT),
    "tucker": Kind(Maker.tucker, "LoRAAdapter", _of_pictures, tucker=True),
    "loha_tucker": Kind(Maker.loha_tucker, "LoHaAdapter", _of_pictures, tucker=True),
    "lokr_tucker": Kind(Maker.lokr_tucker, "LoKrAdapter", _of_pictures, tucker=True),
}
_DORAS = {
    f"dora_{axis}_{name}": row.in_dora(axis == "out")
    for name, row in _ROWS.items()
    if row.core is not None and not row.tucker
    for axis in ("out", "in")
}
# By name; those without a Tucker core first, and those with one last.
ROWS: dict[str, Kind] = dict(sorted({**_ROWS, **_DORAS}.items(), key=lambda item: item[1].tucker))
KINDS = {name: row.make for name, row in ROWS.items() if not row.tucker}
TUCKER_KINDS = {name: row.make for name, row in ROWS.items() if row.tucker}


def make_file(path: Path, kind: str, shapes: dict[str, Shape], seed: int = 0, size: float = 0.5) -> Path:
    """A file of one kind for the given weight keys."""
    maker, tensors = Maker(seed, size), {}
    for key, shape in shapes.items():
        for name, tensor in ROWS[kind].make(maker, shape).items():
            tensors[f"{key.removesuffix('.weight')}.{name}"] = tensor
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path
