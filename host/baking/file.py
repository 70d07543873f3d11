"""The file of a baked LoRA: its tensors and its place; written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...fusion.averaging import Losses
from ...fusion.baking import Factors, low_rank
from ..core import ConductorError, place_of, write_new

RANKS = (4, 8, 16, 32, 64, 128)  # of which the report says what they would keep


@dataclass
class BakedTensors:
    """What will be in the file, and what was lost on the way.

    Attributes:
        rank: the most a weight may have; 0 for as much as it needs.
        dtype: of the file.
        kohya: whether low-rank updates have the keys of kohya's trainers; else those of PEFT.
        tensors: by key, on the CPU.
        ranks: by prefix, of the low-rank updates.
        lost: by prefix, the share of the update's energy ``||dW||_F^2`` beyond the rank.
        left_out: what is not in the file, with the reason.
        odd: weights that are in it under names that only core knows.
        energy: of all low-rank updates.
        energies: by rank of ``RANKS``, how much of that the leading directions of each weight hold.
        as_they_are: prefixes of updates that keep their kind of adapter.
        dense: prefixes of low-rank updates that are of full rank.
        enough: the share of its energy that a dense update keeps.
        losses: what its weights average away of a run; None where no run decided.
        apart: a step of the run, and how far the file's picture is from the run's there; None where that is not known.
    """

    rank: int
    dtype: torch.dtype
    kohya: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    energy: float = 0.0
    energies: dict[int, float] = field(default_factory=lambda: dict.fromkeys(RANKS, 0.0))
    as_they_are: set[str] = field(default_factory=set)
    dense: set[str] = field(default_factory=set)
    enough: float = 1.0
    losses: Losses | None = None
    apart: tuple[int, float] | None = None

    def add_delta(self, prefix: str, delta: Factors | Tensor) -> None:
        """Write a weight's delta as ``lora_up``, ``lora_down`` and an alpha that makes the scale 1, or as ``lora_B``
        and ``lora_A``, which need none.

        Convolutions are written as LoCon: ``[out, rank, 1, ...]`` and ``[rank, in, *kernel]``. A delta that is zero
        has nothing to write.

        Raises:
            ConductorError: the dtype cannot hold it.
        """
        cut = low_rank(delta, self.rank, self.enough)
        if cut.rank == 0:
            return
        kernel = cut.down.ndim - 2
        up, down = ("lora_up", "lora_down") if self.kohya else ("lora_B", "lora_A")
        self.add(f"{prefix}.{up}.weight", cut.up.reshape(*cut.up.shape, *[1] * kernel))
        self.add(f"{prefix}.{down}.weight", cut.down)
        if self.kohya:
            self.tensors[f"{prefix}.alpha"] = torch.tensor(float(cut.rank))
        self.ranks[prefix] = cut.rank
        self.lost[prefix] = cut.lost / cut.energy
        if cut.rank == min(cut.up.shape[0], cut.down[0].numel()):
            self.dense.add(prefix)
        self.energy += cut.energy
        for rank in RANKS:
            self.energies[rank] += float(cut.energies[:rank].sum()) if len(cut.energies) else cut.energy - cut.lost

    def add_as_it_is(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an update in its own kind: tensors by what follows the prefix.

        Raises:
            ConductorError: the dtype cannot hold it.
        """
        for leaf, value in tensors.items():
            if leaf == "alpha":
                self.tensors[f"{prefix}.alpha"] = value.float()
            else:
                self.add(f"{prefix}.{leaf}", value)
        self.as_they_are.add(prefix)

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


@dataclass(frozen=True)
class BakedFile:
    """Where a file was written.

    Attributes:
        path: absolute.
        name: as ComfyUI's LoRA loaders list it; None where they do not look.
    """

    path: Path
    name: str | None


def write(baked: BakedTensors, metadata: dict[str, str], filename_prefix: str) -> BakedFile:
    """Write the file into ComfyUI's output folder, numbered as its own saving nodes do; half a file never appears.

    Args:
        baked: the tensors.
        metadata: the header.
        filename_prefix: below the output folder; ComfyUI's LoRA loaders look in its ``loras``.

    Raises:
        ConductorError: the place is not allowed, or cannot be written to.
    """
    place = place_of(filename_prefix)
    try:
        path = write_new(
            place,
            ".safetensors",
            lambda unfinished: comfy.utils.save_torch_file(baked.tensors, str(unfinished), metadata=metadata),
        )
    except (OSError, SafetensorError) as error:
        raise ConductorError(
            f"filename_prefix: {place.folder / place.name} cannot be written ({error}). Free "
            f"{baked.size / 1e6:.0f} MB of disk space, or choose another name or a lower rank."
        ) from error
    lists_it = Path(folder_paths.get_output_directory(), "loras")
    return BakedFile(path, str(path.relative_to(lists_it)) if path.is_relative_to(lists_it) else None)
