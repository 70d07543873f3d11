"""What a loader did, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable

from comfy.model_patcher import ModelPatcher

from ..fusion.record import RoutingRecord
from .baked_file import BakedFile
from .baked_tensors import BakedTensors
from .fusion_patch import attachment_of
from .lora_patches import LoraPatches

MAX_LISTED = 12


def loader_report(
    model: ModelPatcher, clip_given: bool, loras: list[tuple[LoraPatches, str, float, int, float]]
) -> str:
    """A text for the node: per LoRA what was applied, merged, refused and left, and where the two meet.

    Args:
        model: the resulting model.
        clip_given: whether a CLIP was connected.
        loras: patches, role, strength, number of text-encoder weights patched and their strength.
    """
    lines = [f"model: {type(model.model).__name__}"]
    for patches, role, strength, clip_weights, clip_strength in loras:
        lines.append(f"\n{role}: {patches.file.name}  (strength {strength:g})")
        lines.append(f"  {len(patches.routed)} weights routed at run time")
        if clip_weights:
            lines.append(f"  {clip_weights} text-encoder weights at strength {clip_strength:g}")
        reasons: dict[str, list[str]] = {}
        for target, (_, reason) in patches.merged.items():
            reasons.setdefault(reason, []).append(str(target))
        for reason, targets in reasons.items():
            lines.append(f"  {len(targets)} weights merged as ComfyUI does, not routed: {reason}")
            lines += _listed(targets)
        if patches.refused:
            lines.append(f"  {len(patches.refused)} entries could not be applied:")
            lines += _listed(f"{name}: {why}" for name, why in patches.refused.items())
        if patches.unmatched:
            hint = "" if clip_given else " (text-encoder keys need a CLIP connected)"
            lines.append(f"  {len(patches.unmatched)} keys match nothing in this model{hint}:")
            lines += _listed(patches.unmatched)
    spec = attachment_of(model).spec
    if spec is not None and len({lora.role for lora in spec.loras}) > 1:
        total = len(spec.layers)
        lines.append(
            f"\n{spec.shared_layers} of {total} layers are touched by both and routed; the rest take their one LoRA"
        )
    return "\n".join(lines)


def _listed(items: Iterable[str]) -> list[str]:
    names = list(items)
    shown = [f"    {name}" for name in names[:MAX_LISTED]]
    return shown + ([f"    ... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else [])


def record_report(record: RoutingRecord) -> str:
    """The routing record in a few lines: who owned how much, and which blocks leaned furthest."""
    lines = [f"policy: {record.title} {json.dumps(record.policy)}"]
    lines += [f"{lora['role']}: {lora['name']} at {lora['strength']:g}" for lora in record.loras]
    share = record.subject_share()
    if share is None:
        lines.append("nothing was routed: the policy is constant, or no layer is touched by both LoRAs")
        return "\n".join(lines)
    lines.append(f"{len(record.layers)} layers routed over {record.steps} steps; subject's share {share:.0%}")
    per_layer = (record.weights[0] / record.weights.sum(0).clamp_min(1e-12)).nanmean(-1)
    order = per_layer.argsort().tolist()
    for title, indices in (("most style", order[:5]), ("most subject", order[::-1][:5])):
        lines.append(f"{title}:")
        lines += [f"  {record.layers[i].removeprefix('diffusion_model.')}  {per_layer[i]:.0%} subject" for i in indices]
    return "\n".join(lines)


def bake_report(baked: BakedTensors, file: BakedFile, weights: str, notes: Iterable[str]) -> str:
    """What was written where, how much of it the rank could hold, and what is missing.

    Args:
        baked: the tensors.
        file: where they are.
        weights: which weights were taken, in words.
        notes: what a user should know besides.
    """
    dtype = str(baked.dtype).removeprefix("torch.")
    lines = [f"written: {file.path}  ({file.path.stat().st_size / 1e6:.1f} MB, {dtype})"]
    if file.name is None:
        lines.append("  LoRA loaders do not look there: move it, or begin filename_prefix with loras/")
    else:
        lines.append(f"  LoRA loaders list it as {file.name}; load it at strength 1")
    lines.append(f"weights: {weights}")
    if baked.ranks:
        lines.append(f"{len(baked.ranks)} weights, of rank {max(baked.ranks.values())} at most")
        lost = baked.lost.values()
        worst = max(baked.lost, key=baked.lost.__getitem__)
        lines.append(
            f"energy kept: {1 - sum(lost) / len(lost):.3%} on average, {1 - baked.lost[worst]:.3%} at worst ({worst})"
        )
    lines += notes
    if baked.left_out:
        lines.append(f"{len(baked.left_out)} things are not in the file:")
        lines += _listed(f"{name}: {why}" for name, why in baked.left_out.items())
    return "\n".join(lines)
