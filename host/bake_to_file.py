"""From the LoRAs on a model to a file and a report of it: the work behind ``BakeFusedLoRA``."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..fusion.policies import PassPolicy, Policy, StaticPolicy
from ..fusion.record import RoutingRecord
from .baked_file import BakedFile, metadata_of, write_baked
from .baking import BakeSettings, bake
from .fusion_patch import attachment_of
from .parents import Parent, parents_of
from .report import bake_report


def bake_to_file(
    model: ModelPatcher,
    clip: CLIP | None,
    samples: Tensor | None,
    settings: BakeSettings,
    filename_prefix: str,
    prompt: Any = None,
    extra: Any = None,
) -> tuple[BakedFile, str]:
    """Bake, write and report. Arguments are those of :func:`.baking.bake` and :func:`.baked_file.metadata_of`.

    Raises:
        ConductorError: see :func:`.baking.bake` and :func:`.baked_file.write_baked`.
    """
    baked, record = bake(model, clip, samples, settings)
    spec = attachment_of(model).spec
    policy = spec.policy if spec is not None else None
    texts = parents_of(clip.patcher) if clip is not None else ()
    fusion = {
        "policy": policy.settings() if policy is not None else None,
        "step": None if record is None or settings.step is None else settings.step + 1,
        "steps": None if record is None else record.steps,
    }
    parents = parents_of(model)
    file = write_baked(baked, metadata_of(baked, parents, texts, fusion, prompt, extra), filename_prefix)
    notes = []
    if not texts:
        notes.append("text encoder: no part of the file. If the LoRAs trained one, connect the loader's CLIP")
    if isinstance(policy, PassPolicy):
        notes.append(f"'{policy.name}' runs the model once per LoRA; a file can only hold the mean of its LoRAs")
    if spec is not None and spec.emphasis != 1.0 and record is not None:
        notes.append(
            "emphasis: the router leaves part of the LoRAs out of the negative prompt's pass, a file cannot. Set its "
            "emphasis to 1 and sample again to see and bake what the file will do"
        )
    if _others_patch(model, parents):
        notes.append("LoRAs from other loaders on this model are no part of the file: keep loading them")
    return file, bake_report(baked, file, _weights_in_words(record, settings, policy), notes)


def _weights_in_words(record: RoutingRecord | None, settings: BakeSettings, policy: Policy | None) -> str:
    if record is not None and policy is not None:
        when = f"step {settings.step + 1}" if settings.step is not None else "the mean"
        return f"{when} of {record.steps} steps decided by '{policy.name}'"
    return f"as merged by '{policy.name}'" if isinstance(policy, StaticPolicy) else "every LoRA whole"


def _others_patch(model: ModelPatcher, parents: tuple[Parent, ...]) -> bool:
    """Whether somebody else's patches are on the model too."""
    ours = {id(entry.patch) for parent in parents for entry in parent.merged.values()}
    ours |= {id(patch) for patches, _ in attachment_of(model).merged for patch in patches.values()}
    return any(id(patch[1]) not in ours for patches in model.patches.values() for patch in patches)
