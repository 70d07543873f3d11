"""The file of a baked LoRA: its tensors, its header, its place; written whole or not at all."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from safetensors import SafetensorError
from torch import Tensor

from ...fusion.averaging import Losses
from ...fusion.baking import Factors, low_rank
from ..core import ConductorError, pack_version, place_of, printable, write_new
from ..loras import LoraOnModel

RANKS = (4, 8, 16, 32, 64, 128)  # of which the report says what they would keep
# What other programs read to know which models a LoRA is for: kept where all parents say the same.
FAMILY_KEYS = ("modelspec.architecture", "ss_base_model_version")


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
        losses: what its weights average away of a run; None where no run decided.
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
    losses: Losses | None = None

    def add_delta(self, prefix: str, delta: Factors | Tensor) -> None:
        """Write a weight's delta as ``lora_up``, ``lora_down`` and an alpha that makes the scale 1, or as ``lora_B``
        and ``lora_A``, which need none.

        Convolutions are written as LoCon: ``[out, rank, 1, ...]`` and ``[rank, in, *kernel]``. A delta that is zero
        has nothing to write.

        Raises:
            ConductorError: the dtype cannot hold it.
        """
        cut = low_rank(delta, self.rank)
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
        self.energy += cut.energy
        for rank in RANKS:
            self.energies[rank] += float(cut.energies[:rank].sum()) if len(cut.energies) else cut.energy - cut.lost

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


def metadata_of(
    baked: BakedTensors,
    parents: Sequence[LoraOnModel],
    texts: Sequence[LoraOnModel],
    fusion: dict[str, Any],
    prompt: Any = None,
    extra: Any = None,
) -> dict[str, str]:
    """The header of a baked file: what it was made of, for people, for us, and for other programs.

    Args:
        baked: the tensors.
        parents: the LoRA files that went into its part for the diffusion model.
        texts: those that went into its part for the text encoder.
        fusion: policy and step, as JSON.
        prompt, extra: the workflow, as ComfyUI's saving nodes get it. Left out under ``--disable-metadata``.
    """
    names = list(dict.fromkeys(parent.name for parent in (*parents, *texts)))
    rank = max(baked.ranks.values(), default=0)
    lost = list(baked.lost.values())
    own = {
        "version": pack_version(),
        "parents": [parent.header() for parent in parents],
        "text_encoder": [parent.header() for parent in texts],
        **fusion,
        "rank": rank,
        "energy_lost_mean": sum(lost) / max(1, len(lost)),
        "energy_lost_max": max(lost, default=0.0),
        "averaged_away": {} if baked.losses is None else baked.losses.shares,
        "left_out": baked.left_out,
    }
    metadata = {
        "lora_conductor": json.dumps(own),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": printable(" x ".join(Path(name).stem for name in names)),
        "modelspec.merged_from": printable(", ".join(names)),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        **_agreed((*parents, *texts)),
    }
    if not args.disable_metadata:
        metadata |= {} if prompt is None else {"prompt": json.dumps(prompt)}
        # Core hands on what the page sent, whatever it is; our own entries stay.
        sent = extra if isinstance(extra, dict) else {}
        metadata = {printable(key): json.dumps(value) for key, value in sent.items()} | metadata
    return metadata


def _agreed(parents: Sequence[LoraOnModel]) -> dict[str, str]:
    """What all parents' own headers say of the models that they are for."""
    headers = [_header_of(path) for path in dict.fromkeys(parent.path for parent in parents)]
    said = {key: {header.get(key) for header in headers} for key in FAMILY_KEYS}
    agreed = {key: value for key, values in said.items() for value in values if len(values) == 1 and value is not None}
    return printable(agreed)


def _header_of(path: str) -> dict[str, str]:
    """What the header of a safetensors file says of the family; nothing for other files, and for files that are gone or
    damaged by now: they were whole when they were loaded, and nothing else is read of them again."""
    if not path.endswith(".safetensors"):
        return {}
    try:
        said = json.loads(comfy.utils.safetensors_header(path) or b"{}")["__metadata__"]
        return {key: said[key] for key in FAMILY_KEYS if isinstance(said.get(key), str)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return {}


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
