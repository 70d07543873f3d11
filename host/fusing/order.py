"""Where our LoRAs stand among the patches that others put on a model, before ours and after.

Core applies a weight's patches one after the other. The order matters wherever one of them is computed from the weight
that it finds (DoRA, rotations, replaced weights) or gives it another shape (control LoRAs). So each of our LoRAs knows
how many patches of others it stands behind, and as a patch it is put there, whenever that is done. What is added while
sampling comes after all of them: a layer where that would not be the same is left to core.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...fusion.adapters import Geometry
from ..core import geometry_of
from ..loras import LoraOnModel, LoraPatches, Target, depends_on_weight, new_shape
from .spec import FusionSpec

RESHAPED = "another LoRA changes the weight's shape"
DEPENDENT = "what is loaded after them there is computed from the weight that it finds"
SCALED = "a node after the loader scales the weights there, as a merge with another model does"
FOLLOWED = "they are computed from the weight, and other LoRAs follow them there"


@dataclass(frozen=True)
class Placed:
    """Patches of ours on a model.

    Attributes:
        patches: by core's key, each an object of its own.
        strength: of all of them.
        behind: by weight, how many patches of others they stand behind.
    """

    patches: Mapping[Any, Any]
    strength: float
    behind: Mapping[str, int]


def own_patch(patch: Any) -> Any:
    """A copy of a patch that only this clone holds: told apart from the same file loaded by somebody else."""
    if isinstance(patch, tuple):
        return tuple([*patch])
    return type(patch)(patch.loaded_keys, patch.weights)


def placed_lora(lora: LoraOnModel, layers: Collection[str]) -> Placed:
    """A LoRA's own patches for the layers of those names."""
    chosen = {
        target.core_key: own_patch(patch)
        for target, patch in lora.core_patches.items()
        if target.key.removesuffix(".weight") in layers
    }
    return Placed(chosen, lora.strength, lora.behind)


def of_others(model: ModelPatcher, ours: Iterable[Placed]) -> dict[str, list[Any]]:
    """Core's entries by weight, without ours."""
    own = {id(patch) for placed in ours for patch in placed.patches.values()}
    return {key: [entry for entry in entries if id(entry[1]) not in own] for key, entries in model.patches.items()}


def take_off(model: ModelPatcher, ours: Sequence[Placed]) -> None:
    """Remove our patches; those of others stay."""
    if ours:
        model.patches = {key: entries for key, entries in of_others(model, ours).items() if entries}
        model.add_patches({}, 0)  # tells core that the weights have changed


def take_off_merged(model: ModelPatcher, loras: Iterable[LoraOnModel]) -> None:
    """Remove what core merges of LoRAs of ours because it cannot be routed: for each of their entries, one patch."""
    gone = Counter((target.key, id(entry.patch)) for lora in loras for target, entry in lora.merged.items())
    if not gone:
        return
    left: dict[str, list[Any]] = {}
    for key, entries in model.patches.items():
        for entry in entries:
            if gone[key, id(entry[1])] > 0:  # one file may be loaded twice
                gone[key, id(entry[1])] -= 1
            else:
                left.setdefault(key, []).append(entry)
    model.patches = left
    model.add_patches({}, 0)  # tells core that the weights have changed


def put_on(model: ModelPatcher, new: Iterable[Placed], present: Iterable[Placed] = ()) -> None:
    """Add patches of ours to a model, each where it stands.

    Args:
        new: in the order in which they were loaded.
        present: those of ours that are on the model.
    """
    new = [placed for placed in new if placed.patches]
    for placed in new:
        model.add_patches(placed.patches, placed.strength)
    behind: dict[int, Mapping[str, int]] = {}
    for placed in (*present, *new):
        behind |= {id(patch): placed.behind for patch in placed.patches.values()}
    for key, entries in model.patches.items():
        others = [entry for entry in entries if id(entry[1]) not in behind]
        own = [(behind[id(entry[1])].get(key, 0), entry) for entry in entries if id(entry[1]) in behind]
        if others and own:
            numbered = [*own, *((i + 0.5, entry) for i, entry in enumerate(others))]
            model.patches[key] = [entry for _, entry in sorted(numbered, key=lambda item: item[0])]


def refuse_reshaped(model: ModelPatcher, patches: LoraPatches) -> None:
    """Leave out what comes too late for a weight: core cannot add it once a control LoRA has made the weight larger."""
    for target in list(patches.routed):
        shape = next((s for e in reversed(model.patches.get(target.key, ())) if (s := new_shape(e[1]))), None)
        geometry = geometry_of(model.model, target.key)  # the weight itself may be patched at the moment
        if shape is not None and isinstance(geometry, Geometry) and shape != geometry.weight_shape:
            patches.refuse(
                target,
                f"a LoRA before it makes this weight {list(shape)}, for which it is too small: load this one first",
            )


def left_to_core(model: ModelPatcher, spec: FusionSpec, ours: Iterable[Placed]) -> dict[str, str]:
    """Layers whose LoRAs cannot be added while sampling without changing their order, with the reason.

    Args:
        model: with the patches of others.
        spec: what would be added while sampling.
        ours: patches of ours that are on the model.
    """
    others = of_others(model, ours)
    live = {f"{layer.name}.weight": layer.name for layer in spec.layers if layer.name not in spec.settled}
    concerned = {key: name for key, name in live.items() if others.get(key)}
    found: dict[str, str] = {}
    for lora in spec.loras if concerned else ():
        for target, patch in lora.core_patches.items():
            name = concerned.get(target.key)
            if name is not None:
                reason = _reason(target, patch, lora, others[target.key])
                if reason is not None:
                    found.setdefault(name, reason)
    return found


def said_of_left(left: Mapping[str, str]) -> str:
    """In words, why layers are left to core; the reasons once each."""
    reasons = " and ".join(dict.fromkeys(left.values()))
    return f"{len(left)} layers are not routed, but take their LoRAs as ComfyUI stacks them, because {reasons}"


def _reason(target: Target, patch: Any, lora: LoraOnModel, others: Sequence[Any]) -> str | None:
    if any(new_shape(entry[1]) is not None for entry in others):
        return RESHAPED
    later = others[lora.behind.get(target.key, 0) :]
    if any(entry[2] != 1.0 for entry in later):
        return SCALED
    if any(depends_on_weight(entry[1]) for entry in later):
        return DEPENDENT
    return FOLLOWED if later and depends_on_weight(patch) else None


@contextmanager
def as_patches(
    models: Iterable[ModelPatcher], spec: FusionSpec, layers: Collection[str], ours: Sequence[Placed]
) -> Iterator[None]:
    """For a run, the LoRAs of some layers as patches, each where it stands; not loaded yet.

    The same run again finds the weights as this one leaves them.
    """
    before = [(model, model.patches, model.patches_uuid) for model in models] if layers else []
    for model, patches, version in before:
        model.patches = {key: [*entries] for key, entries in patches.items()}
        put_on(model, [placed_lora(lora, layers) for lora in spec.loras], ours)
        model.patches_uuid = uuid.uuid5(version, " ".join((spec.content_id, *sorted(layers))))
    try:
        yield
    finally:
        for model, patches, version in before:
            model.patches, model.patches_uuid = patches, version
