"""The tensors of a LoRA file in the making, in the keys that every loader knows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..fusion.baking import Factors, low_rank
from .errors import ConductorError


@dataclass
class BakedTensors:
    """What will be in the file, and what was lost on the way.

    Attributes:
        rank: the most a weight may have; 0 for as much as it needs.
        dtype: of the file.
        tensors: by key, on the CPU.
        ranks: by prefix, of the low-rank updates.
        lost: by prefix, the share of the update's energy ``||dW||_F^2`` beyond the rank.
        left_out: what is not in the file, with the reason.
    """

    rank: int
    dtype: torch.dtype
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add_delta(self, prefix: str, delta: Factors | Tensor) -> None:
        """Write a weight's delta as ``lora_up``, ``lora_down`` and an alpha that makes the scale 1.

        Convolutions are written as LoCon: ``[out, rank, 1, ...]`` and ``[rank, in, *kernel]``. A delta that is zero
        has nothing to write.

        Raises:
            ConductorError: the dtype cannot hold it.
        """
        cut = low_rank(delta, self.rank)
        if cut.rank == 0:
            return
        kernel = cut.down.ndim - 2
        self.add(f"{prefix}.lora_up.weight", cut.up.reshape(*cut.up.shape, *[1] * kernel))
        self.add(f"{prefix}.lora_down.weight", cut.down)
        self.tensors[f"{prefix}.alpha"] = torch.tensor(float(cut.rank))
        self.ranks[prefix] = cut.rank
        self.lost[prefix] = cut.lost / cut.energy

    def add(self, key: str, value: Tensor) -> None:
        """Write a tensor as it is.

        Raises:
            ConductorError: the dtype cannot hold it.
        """
        stored = value.to("cpu", self.dtype).contiguous()
        if not bool(torch.isfinite(stored).all()):
            raise ConductorError(f"dtype: {key} holds values too large for {self.dtype}. Choose bf16 or fp32.")
        self.tensors[key] = stored

    @property
    def size(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())
