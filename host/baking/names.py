"""Under which keys a baked file holds its weights: one dialect a file, one that other programs read too.

Core's own key maps say what every prefix is for. Of the dialects in them a file takes one: where kohya's trainers have
names for a family that others read, those (``lora_unet_...``, ``lora_down``, ``lora_up``, ``alpha``); else the family's
names in diffusers, or the model's own where diffusers converts those, with ``lora_A`` and ``lora_B`` as PEFT writes
them, and no alpha. What diffusers reads of each: ``docs/baked-files.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..loras import Target

Reorder = Callable[[Tensor], Tensor]


class Slot(NamedTuple):
    """A prefix, and the rows of a weight that it is for.

    ``reorder`` is what core does to the rows it reads, which is the same as undoing it; None for nothing.
    """

    prefix: str
    start: int
    stop: int
    reorder: Reorder | None = None


@dataclass(frozen=True)
class Dialect:
    """A way of writing keys.

    Attributes:
        kohya: whether it has ``lora_down``, ``lora_up`` and ``alpha``; else ``lora_A`` and ``lora_B``.
        begins: how its prefixes begin.
        own: whether the rest is the model's own name for the layer (True), another one (False), or either (None).
        only: what else its prefixes must match: layers whose names other programs know.
    """

    kohya: bool
    begins: str
    own: bool | None = None
    only: str = ""

    def holds(self, prefix: str, key: str) -> bool:
        """Whether a prefix of core's map for a weight is one of this dialect."""
        if not prefix.startswith(self.begins) or re.search(self.only, prefix) is None:
            return False
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        mine = prefix[len(self.begins) :] == (name.replace(".", "_") if self.kohya else name)
        return self.own is None or self.own == mine


KOHYA = Dialect(True, "lora_unet_", own=True)
KOHYA_DIFFUSERS = Dialect(True, "lora_unet_", own=False)
KOHYA_FLUX = Dialect(True, "lora_unet_", own=True, only="^lora_unet_(double|single)_blocks_")
DIFFUSERS = Dialect(False, "transformer.")
OWN = Dialect(False, "diffusion_model.", own=True)
# Of the model's own names those that diffusers converts; at others it gives the file up, or passes them over.
WAN = r"\.(blocks\.|time_projection|head\.head|text_embedding|time_embedding|img_emb)"
LUMINA = r"\.(layers|noise_refiner|context_refiner)\.\d+\."
LTX = r"\.(transformer_blocks|caption_projection|proj_out)"

# By core's class of model, the dialects in the order they are preferred; a subclass has those of its parent.
FAMILIES: dict[str, tuple[Dialect, ...]] = {
    "SDXL": (KOHYA,),
    "SDXLRefiner": (KOHYA,),
    "SD3": (DIFFUSERS,),
    "AuraFlow": (DIFFUSERS,),
    "PixArt": (DIFFUSERS,),
    "Flux2": (KOHYA_FLUX, OWN),
    # Core has FLUX.2's names of some layers for FLUX.1 too.
    "Flux": (KOHYA_FLUX, replace(DIFFUSERS, only=r"^(?!.*(to_qkv_mlp_proj|linear_in|linear_out)$)")),
    "QwenImage": (KOHYA,),
    "HiDream": (DIFFUSERS,),
    "Krea2": (DIFFUSERS,),
    "ErnieImage": (DIFFUSERS,),
    "Kandinsky5": (DIFFUSERS,),
    "HunyuanVideo": (replace(DIFFUSERS, only=r"\.(double|single)_blocks\."),),
    "MiniMaxH3": (KOHYA,),
    "WAN21": (replace(OWN, only=rf"^diffusion_model{WAN}"),),
    "LTXV": (replace(OWN, only=rf"^diffusion_model{LTX}"),),
    "LTXAV": (replace(OWN, only="^(?!.*embeddings_connector)"),),
    "Ideogram4": (replace(OWN, only=rf"^diffusion_model{LUMINA}"),),
    "ACEStep15": (Dialect(False, "base_model.model.", only=r"\.layers\."),),
}
Z_IMAGE = (DIFFUSERS,)
LUMINA_2 = (replace(OWN, only=rf"^diffusion_model{LUMINA}"),)
UNET = (KOHYA_DIFFUSERS,)  # sd-scripts trains SD1 and SD2 on the UNet of diffusers


@dataclass(frozen=True)
class Naming:
    """The names that one file uses.

    Attributes:
        kohya: see :class:`Dialect`.
        slots: by weight, the prefixes that cover all of it, or as much as there are names for.
        odd: weights whose names are core's own, as the dialect has none for them.
    """

    kohya: bool
    slots: Mapping[str, tuple[Slot, ...]]
    odd: frozenset[str] = frozenset()

    def prefix_of(self, target: Target) -> str | None:
        """The prefix for a whole weight, or for exactly that slice of one."""
        for slot in self.slots.get(target.key, ()):
            if slot.reorder is None and (target.offset is None or target.offset[1:] == (slot.start, slot.stop)):
                return slot.prefix
        return None


def naming_of(
    model: torch.nn.Module, key_map: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], targets: Iterable[Target]
) -> Naming:
    """The names of a file for a diffusion model.

    Args:
        model: core's ``BaseModel``.
        key_map: core's map of prefixes to its weights.
        shapes: of the weights that something is to be written for.
        targets: what is to be written. Where several dialects name all of it, the one that cuts it as it is.
    """
    rows = {key: shape[0] for key, shape in shapes.items() if shape}
    wanted: dict[str, set[tuple[int, int]]] = {}
    for target in targets:
        if target.key in rows:
            wanted.setdefault(target.key, set()).add(_span(target, rows[target.key]))
    # Norms and the like have names in few dialects, and are no reason to take another.
    layers = [key for key in wanted if len(shapes[key]) > 1]
    by_key = _by_key(key_map, wanted)
    dialects = _dialects_of(model, key_map) or (OWN,)
    best: tuple[tuple[int, int, int], Dialect] | None = None
    for order, dialect in enumerate(dialects):
        slots = _slots_of(dialect, by_key, rows, wanted)
        unnamed = sum(not covers(slots[key], wanted[key]) for key in layers)
        otherwise = sum(not wanted[key] <= {(slot.start, slot.stop) for slot in slots[key]} for key in layers)
        rank = (unnamed, otherwise, order)
        if best is None or rank < best[0]:
            best = rank, dialect
    assert best is not None
    dialect = best[1]
    slots = _slots_of(dialect, by_key, rows, wanted)
    others = {key: wanted[key] for key in wanted if not covers(slots[key], wanted[key])}
    slots |= _slots_of(KOHYA if dialect.kohya else OWN, by_key, rows, others)
    return Naming(dialect.kohya, slots, frozenset(others))


def _slots_of(
    dialect: Dialect,
    by_key: Mapping[str, list[tuple[str, Target]]],
    rows: Mapping[str, int],
    wanted: Mapping[str, set[tuple[int, int]]],
) -> dict[str, tuple[Slot, ...]]:
    return {
        key: _slots([entry for entry in by_key.get(key, ()) if dialect.holds(entry[0], key)], rows[key], spans)
        for key, spans in wanted.items()
    }


def _dialects_of(model: torch.nn.Module, key_map: Mapping[str, Any]) -> tuple[Dialect, ...]:
    for cls in type(model).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
        if cls.__name__ == "Lumina2":
            return Z_IMAGE if _is_z_image(model) else LUMINA_2
    return UNET if any(prefix.startswith("unet.down_blocks.") for prefix in key_map) else ()


def _is_z_image(model: Any) -> bool:
    return bool(model.model_config.unet_config.get("z_image_modulation"))


def text_naming(key_map: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], kohya: bool) -> Naming:
    """The names of a file for its text encoders, by the dialect of its other part.

    CLIP and T5 have names that other programs know; language models have core's own alone.
    """
    several = any(prefix.startswith(("lora_te2_", "lora_te3_")) for prefix in key_map)
    order: tuple[str, ...] = ("text_encoder.", "text_encoder_2.")
    if kohya:
        order = ("lora_te2_", "lora_te3_", "lora_te1_") if several else ("lora_te_",)
    named: dict[str, list[str]] = {}
    for prefix, key in key_map.items():
        if isinstance(key, str) and shapes.get(key):
            named.setdefault(key, []).append(prefix)
    slots = {}
    for key, prefixes in named.items():
        known = [prefix for begin in order for prefix in prefixes if prefix.startswith(begin)]
        slots[key] = (Slot((known or prefixes)[0], 0, shapes[key][0]),)
    return Naming(kohya, slots)


def _span(target: Target, rows: int) -> tuple[int, int]:
    """The rows of a weight that a target is for; all of them where it is a slice of columns."""
    if target.offset is None or target.offset[0] != 0:
        return 0, rows
    return target.offset[1], target.offset[1] + target.offset[2]


def _by_key(key_map: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, list[tuple[str, Target]]]:
    found: dict[str, list[tuple[str, Target]]] = {}
    for prefix, raw in key_map.items():
        target = Target(raw) if isinstance(raw, str) else Target(*raw)
        if target.key in keys and (target.offset is None or target.offset[0] == 0):
            found.setdefault(target.key, []).append((prefix, target))
    return found


def _slots(entries: list[tuple[str, Target]], rows: int, wanted: set[tuple[int, int]]) -> tuple[Slot, ...]:
    """Prefixes for a weight that do not overlap: as it is wanted, else whole, else by slices."""
    spans: dict[tuple[int, int], Slot] = {}
    for prefix, target in entries:
        start, stop = _span(target, rows)
        if stop <= rows and (target.function is None or _undoes_itself(target.function, stop - start)):
            spans.setdefault((start, stop), Slot(prefix, start, stop, target.function))
    if wanted <= spans.keys() and all(a == b or a[1] <= b[0] or b[1] <= a[0] for a in wanted for b in wanted):
        return tuple(spans[span] for span in sorted(wanted))
    if (0, rows) in spans:
        return (spans[0, rows],)
    chosen: list[Slot] = []
    for slot in sorted(spans.values(), key=lambda slot: slot.stop - slot.start):
        if all(slot.stop <= other.start or other.stop <= slot.start for other in chosen):
            chosen.append(slot)
    return tuple(sorted(chosen, key=lambda slot: slot.start))


def _undoes_itself(reorder: Reorder, rows: int) -> bool:
    """Whether a reordering of rows is its own inverse, as the swap of two halves is."""
    order = torch.arange(rows)
    try:
        return bool(torch.equal(reorder(reorder(order)), order))
    except (RuntimeError, ValueError, IndexError):
        return False


def covers(slots: tuple[Slot, ...], spans: set[tuple[int, int]]) -> bool:
    """Whether prefixes that do not overlap are for all of those rows."""
    return all(
        sum(max(0, min(stop, slot.stop) - max(start, slot.start)) for slot in slots) == stop - start
        for start, stop in spans
    )
