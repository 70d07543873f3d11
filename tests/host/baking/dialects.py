"""Parents in every dialect that core maps for a family, the file that is baked of them, and what loaders make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.baking import BakeSettings, bake
from lora_conductor.host.fusing import fused
from lora_conductor.host.loras import Target

from .. import tiny
from ..families.catalogue import FAMILIES
from ..families.family import build, build_empty
from .diffusers_models import DIFFUSERS
from .loaders import read_by_comfyui, read_by_diffusers

BEGINNINGS = {
    "kohya": "lora_unet_",
    "OneTrainer": "lora_transformer_",
    "LyCORIS": "lycoris_",
    "diffusers": "transformer.",
    "PEFT in UNet": "unet.base_model.model.",
    "diffusers UNet": "unet.",
    "PEFT": "base_model.model.",
    "ComfyUI": "diffusion_model.",
}
DOTTED = "without prefix"
BLOCKS = "kohya, blocks alone"
PEFT_LEAVES = {"diffusers", "PEFT", "PEFT in UNet", "ComfyUI", DOTTED}
RANK = 3

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A family and the dialects of two parents.

    Attributes:
        family: as core calls it.
        parents: dialects of the two.
        key: one of the file's.
        keys: how many the file has.
        comfyui, diffusers: the share of keys that is used.
        said: what the loaders warned of.
    """

    family: str
    parents: str
    key: str
    keys: int
    comfyui: float
    diffusers: float
    said: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.keys > 0 and self.comfyui == self.diffusers == 1 and not self.said


class Parents:
    """LoRA files for one family, by dialect, for all layers that files of the family can be about in diffusers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.known = DIFFUSERS[name]

    @cached_property
    def model(self) -> ModelPatcher:
        family = FAMILIES[self.name]
        return build_empty(replace(family, unet=family.unet | self.known.wide)) if self.known.wide else build(family)

    @cached_property
    def dialects(self) -> dict[str, dict[str, Shape]]:
        """By dialect, its prefixes and the shapes they are for; without those that name not even half of the layers."""
        shapes = {k: s for k, s in tiny.layer_shapes(self.model).items() if not any(p in k for p in self.known.without)}
        found: dict[str, dict[Target, str]] = {}
        for prefix, raw in comfy.lora.model_lora_keys_unet(self.model.model, {}).items():
            target = Target(raw) if isinstance(raw, str) else Target(*raw)
            if target.key in shapes and not prefix.endswith("linear1_qkv"):
                found.setdefault(self._dialect_of(prefix, target), {}).setdefault(target, prefix)
        named = {
            dialect: {prefix: _shape(shapes[target.key], target) for target, prefix in _apart(prefixes).items()}
            for dialect, prefixes in found.items()
            if len({target.key for target in prefixes}) > self.known.least * len(shapes)
        }
        blocks = {prefix: shape for prefix, shape in named["kohya"].items() if "block" in prefix}
        return named | ({BLOCKS: blocks} if blocks else {})

    def _dialect_of(self, prefix: str, target: Target) -> str:
        begun = next((name for name, begin in BEGINNINGS.items() if prefix.startswith(begin)), DOTTED)
        own = target.key.removeprefix("diffusion_model.").removesuffix(".weight")
        if begun == "kohya" and prefix != f"lora_unet_{own.replace('.', '_')}":
            return "kohya, diffusers' names"
        return begun

    def file(self, dialect: str, seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        up, down = ("lora_B", "lora_A") if dialect in PEFT_LEAVES else ("lora_up", "lora_down")
        tensors = {}
        for prefix, (out, *inner) in self.dialects[dialect].items():
            tensors[f"{prefix}.{up}.weight"] = torch.randn(out, RANK, *[1] * (len(inner) - 1), generator=generator)
            tensors[f"{prefix}.{down}.weight"] = torch.randn(RANK, *inner, generator=generator)
        path = self.folder / f"{self.name}-{dialect}-{seed}.safetensors".replace("'", "")
        save_file(tensors, path)
        return path

    def rows(self) -> Iterator[Row]:
        """Parents of one dialect each, and of every dialect beside the next."""
        names = list(self.dialects)
        for subject, style in [(name, name) for name in names] + list(pairwise(names)):
            loras = (self.file(subject, 1), 0.8), (self.file(style, 2), 0.7)
            baked, _ = bake(fused(self.model, *loras, policy=Sum()), None, None, BakeSettings(dtype=torch.float32))
            readings = read_by_comfyui(self.model, baked.tensors), read_by_diffusers(self.name, baked.tensors)
            shares = [1 - len(reading.unused) / max(1, len(baked.tensors)) for reading in readings]
            said = tuple(line for reading in readings for line in reading.said)
            parents = subject if subject == style else f"{subject} x {style}"
            missing = tuple(f"{name}: {why}" for name, why in baked.left_out.items())
            yield Row(self.name, parents, next(iter(baked.tensors), ""), len(baked.tensors), *shares, said + missing)


def _apart(prefixes: dict[Target, str]) -> dict[Target, str]:
    """Of prefixes that are for the same rows, the small slices: core would apply one of them alone."""
    slices = {target.key for target in prefixes if target.offset is not None}
    return {t: p for t, p in prefixes.items() if t.offset is not None or t.function is not None or t.key not in slices}


def _shape(shape: Shape, target: Target) -> Shape:
    return shape if target.offset is None else (target.offset[2], *shape[1:])


def table(rows: list[Row], versions: str, command: str) -> str:
    """The page."""
    lines = [
        "# Baked files in other programs",
        "",
        f"Made by `{command}` with {versions}. Do not edit.",
        "",
        "Of every family that diffusers loads LoRAs for and whose names ComfyUI knows, a small model; two LoRA files",
        "on its layers, in each dialect of keys that ComfyUI reads; what *Bake Fused LoRA* writes of them, and the",
        "share of its keys that ComfyUI's loader uses, and that diffusers' own converters put on a layer of its model.",
        "The file has one dialect, whatever its parents had.",
        "",
        f"{len(rows)} files, {sum(not row.passed for row in rows)} with a key unused or a warning.",
        "",
        "| Family | Dialect of the parents | A key of the file | Keys | ComfyUI | diffusers | Warnings |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        said = "none" if not row.said else f"**{len(row.said)}**: {row.said[0][:80]}"
        shares = " | ".join(
            f"{share:.0%}" if share == 1 else f"**{share:.1%}**" for share in (row.comfyui, row.diffusers)
        )
        lines.append(f"| {row.family} | {row.parents} | `{row.key}` | {row.keys} | {shares} | {said} |")
    lines += [
        "",
        "## Layers that no name reaches",
        "",
        "Left out above: ComfyUI has no name for them that diffusers reads.",
    ]
    lines += ["The file holds them, and the report of the node counts them.", ""]
    for name, known in DIFFUSERS.items():
        lines += [f"- {name}: `{part}`, as {why}" for part, why in known.without.items()]
    return "\n".join([*lines, ""])
