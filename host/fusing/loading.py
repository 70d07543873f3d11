"""LoRA files onto a model: the library's front door, and the work behind ``DualLoRADynamicLoader``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import comfy.lora
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP

from ...fusion.policies import Policy
from ...fusion.routing import Refinement
from ..core import ConductorError, family_of, model_path
from ..loras import (
    NO_LORA,
    LoraChoice,
    LoraFile,
    LoraOnModel,
    LoraPatches,
    about,
    is_for_text,
    model_patches,
    read_lora,
    refuse_unfit,
    remember,
    resolve,
    together,
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
            if strength == 0:
                continue
            patches = model_patches(read_lora(Path(path).name, str(path)), model)
            patches.check_finite()
            if not patches.fits:
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
    model: ModelPatcher, clip: CLIP | None, choices: list[LoraChoice], lean: float = 0.0
) -> tuple[ModelPatcher, CLIP | None, str]:
    """Put the chosen LoRAs on clones of the model and the text encoder.

    Args:
        lean: as in :func:`.attach.add_loras`.

    Returns:
        model, clip and a report in words.

    Raises:
        ConductorError: a file is missing, damaged or made for another model.
    """
    loaded: list[LoadedLora] = []
    idle: list[LoraChoice] = []
    for choice in choices:
        if not choice.acts(clip is not None):
            idle += [choice] if choice.name != NO_LORA else []
            continue
        file = read_lora(choice.name, _path_of(choice))
        patches = model_patches(file, model)
        if choice.strength != 0:
            patches.check_finite()
        of_text = clip_weights = 0
        if clip is not None:
            clip, of_text, clip_weights = _patch_clip(clip, file, patches, choice)
        if choice.strength != 0 and not (patches.fits or of_text):
            raise ConductorError(_fits_nothing(patches, model, clip is not None))
        loaded.append(LoadedLora(choice, patches, clip_weights, of_text - clip_weights, about(file.path)))
    model = add_loras(model, [(lora.patches, lora.choice.role, lora.choice.strength) for lora in loaded], lean)
    return model, clip, loader_report(model, clip is not None, loaded, idle, lean)


def trigger_words(choices: list[LoraChoice], clip_given: bool) -> str:
    """What the LoRAs that act are called by, as a part of a prompt; files that name no words add none."""
    return together(about(_path_of(choice)).for_prompt for choice in choices if choice.acts(clip_given))


def _path_of(choice: LoraChoice) -> str:
    place = f"{choice.where}: " if choice.where else ""
    return model_path("loras", choice.name, f"{place}{choice.role} LoRA")


def _patch_clip(clip: CLIP, file: LoraFile, patches: LoraPatches, choice: LoraChoice) -> tuple[CLIP, int, int]:
    """The file's text-encoder patches through core, on a clone; takes their keys off the unmatched list.

    Returns:
        The clone, how many of its weights the file fits, and how many were patched.

    Raises:
        ConductorError: they hold NaN or infinite values.
    """
    resolution = resolve(file, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
    refuse_unfit(file, resolution, clip.cond_stage_model.state_dict())
    left = set(resolution.unmatched)
    patches.unmatched = [key for key in patches.unmatched if key in left]
    patches.refused.update(resolution.refused)
    strength = choice.clip_strength
    if strength != 0:
        patches.broken = resolution.broken
        patches.check_finite()
    if strength == 0 or not resolution.entries:
        return clip, len(resolution.entries), 0
    patches.applied |= {key for entry in resolution.entries.values() for key in entry.keys}
    clip = clip.clone()
    core_patches = {target.core_key: entry.patch for target, entry in resolution.entries.items()}
    applied = clip.add_patches(core_patches, strength)
    lora = LoraOnModel(file.name, file.path, file.digest, choice.role, strength, merged=resolution.entries)
    remember(clip.patcher, [lora])
    return clip, len(resolution.entries), len(applied)


def _fits_nothing(patches: LoraPatches, model: ModelPatcher, clip_given: bool) -> str:
    file = patches.file
    texts = sum(is_for_text(key) for key in file.tensors)
    if texts and not clip_given and not patches.refused:
        return (
            f"LoRA '{file.name}' has nothing for the diffusion model: {texts} of its {len(file.tensors)} keys are for "
            "the text encoder. Connect CLIP to the loader, or use another file."
        )
    parts = "this model or its text encoder" if clip_given else "this model"
    if patches.refused:
        name, why = next(iter(patches.refused.items()))
        detail = f"{len(patches.refused)} of its entries have the right name but cannot be applied ({name}: {why})"
    else:
        detail = f"its {len(file.tensors)} keys look like '{next(iter(file.tensors)):.100}'"
    said = about(file.path)
    if said.base:
        detail += f", it says that it is for {said.base} ({said.base_from})"
    return (
        f"LoRA '{file.name}' does not fit {parts}: {detail}, and the model is a {family_of(model.model)}. "
        "Use a LoRA that was trained for this model's family."
    )
