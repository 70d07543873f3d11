"""LoRA files onto a model: the library's front door, and the work behind ``DualLoRADynamicLoader``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.lora
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...fusion.policies import Policy
from ...fusion.routing import Refinement
from ..core import ConductorError, model_path
from ..loras import (
    LoraChoice,
    LoraFile,
    LoraOnModel,
    LoraPatches,
    model_patches,
    read_lora,
    refuse_unfit,
    remember,
    resolve,
)
from .attach import add_loras, set_policy
from .report import LoadedLora, loader_report

File = str | Path | tuple[str | Path, float]
Files = File | Sequence[File]


def fused(
    model: ModelPatcher,
    subject: Files = (),
    style: Files = (),
    policy: Policy | None = None,
    refinement: Refinement | None = None,
    *,
    always_live: bool = False,
) -> ModelPatcher:
    """A clone of a model with LoRA files on it, fused by a policy.

    Args:
        model: may already carry LoRAs; they stay.
        subject, style: files of each role: a path, ``(path, strength)``, or several of either. Strength is 1 if none is
            given; LoRAs of strength 0 are left out, as core does.
        policy: how they are fused; as before, which is the recommended policy at first, if None.
        refinement: settings of any policy; neutral ones if None.
        always_live: see :func:`.attach.set_policy`.

    Raises:
        ConductorError: a file is missing, damaged or made for another model.
    """
    loras = []
    for role, files in (("subject", subject), ("style", style)):
        for path, strength in _with_strengths(files):
            patches = model_patches(read_lora(Path(path).name, str(path)), model)
            if strength and not (patches.routed or patches.merged):
                raise ConductorError(_fits_nothing(patches, model, False))
            loras.append((patches, role, strength))
    model = add_loras(model, loras)
    return model if policy is None else set_policy(model, policy, refinement, always_live=always_live)


def _with_strengths(files: Files) -> list[tuple[str | Path, float]]:
    if isinstance(files, str | Path):
        return [(files, 1.0)]
    if isinstance(files, tuple) and len(files) == 2 and isinstance(files[1], int | float):
        return [(files[0], float(files[1]))]
    return [found for file in files for found in _with_strengths(file)]


def load_loras(
    model: ModelPatcher, clip: CLIP | None, choices: list[LoraChoice]
) -> tuple[ModelPatcher, CLIP | None, str]:
    """Put the chosen LoRAs on clones of the model and the text encoder.

    Returns:
        model, clip and a report in words.

    Raises:
        ConductorError: a file is missing, damaged or made for another model.
    """
    loaded: list[LoadedLora] = []
    for choice in choices:
        if not choice.used:
            continue
        file = read_lora(choice.name, _path_of(choice))
        patches = model_patches(file, model)
        clip_weights = 0
        if clip is not None:
            clip, clip_weights = _patch_clip(clip, file, patches, choice)
        if not (patches.routed or patches.merged or clip_weights):
            raise ConductorError(_fits_nothing(patches, model, clip is not None))
        loaded.append(LoadedLora(choice, patches, clip_weights))
    model = add_loras(model, [(lora.patches, lora.choice.role, lora.choice.strength) for lora in loaded])
    return model, clip, loader_report(model, clip is not None, loaded)


def _path_of(choice: LoraChoice) -> str:
    place = f"{choice.where}: " if choice.where else ""
    return model_path("loras", choice.name, f"{place}{choice.role} LoRA")


def _patch_clip(clip: CLIP, file: LoraFile, patches: LoraPatches, choice: LoraChoice) -> tuple[CLIP, int]:
    """The file's text-encoder patches through core, on a clone; takes their keys off the unmatched list."""
    resolution = resolve(file, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
    refuse_unfit(resolution, clip.cond_stage_model.state_dict())
    left = set(resolution.unmatched)
    patches.unmatched = [key for key in patches.unmatched if key in left]
    patches.refused.update(resolution.refused)
    strength = choice.clip_strength
    if strength == 0 or not resolution.entries:
        return clip, 0
    clip = clip.clone()
    core_patches = {target.core_key: entry.patch for target, entry in resolution.entries.items()}
    applied = clip.add_patches(core_patches, strength)
    lora = LoraOnModel(file.name, file.path, file.digest, choice.role, strength, merged=resolution.entries)
    remember(clip.patcher, [lora])
    return clip, len(applied)


def _fits_nothing(patches: LoraPatches, model: ModelPatcher, clip_given: bool) -> str:
    file = patches.file
    parts = "this model or its text encoder" if clip_given else "this model"
    if patches.refused:
        name, why = next(iter(patches.refused.items()))
        detail = f"{len(patches.refused)} of its entries have the right name but cannot be applied ({name}: {why})"
    else:
        detail = f"its {len(file.tensors)} keys look like '{next(iter(file.tensors))}'"
    return (
        f"LoRA '{file.name}' does not fit {parts}: {detail}, and the model is a {type(model.model).__name__}. "
        "Use a LoRA that was trained for this model's family."
    )
