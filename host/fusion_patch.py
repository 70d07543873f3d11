"""LoRAs and their policy on a ModelPatcher.

Nothing on the model is touched when a node runs: the clone carries a frozen spec, and either two wrappers that fuse
while sampling (``live``) or, for static policies, ordinary weight patches that core applies (``merged``).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..fusion.adapters import Delta
from ..fusion.layers import FusedLayer
from ..fusion.policies import RECOMMENDED, Policy, StaticPolicy
from ..fusion.refinement import Refinement
from ..fusion.router import Prepared, prepare
from .base_weights import weight_reader
from .heads import head_width
from .layer_geometry import geometry_of
from .live import LiveFusion
from .lora_patches import LoraPatches
from .lora_resolving import Target
from .merged import merged_patches
from .parents import remember

ATTACHMENT = "lora_conductor"


@dataclass(frozen=True)
class LoraOnModel:
    """One LoRA with its role and strength; ``core_patches`` are the same deltas as core loads them."""

    name: str
    role: str
    strength: float
    digest: str
    deltas: dict[Target, Delta] = field(repr=False, compare=False, hash=False)
    core_patches: dict[Target, Any] = field(repr=False, compare=False, hash=False)

    def header(self) -> dict[str, Any]:
        return {"name": self.name, "role": self.role, "strength": self.strength, "sha256": self.digest}


class DeltaBank(nn.Module):
    """All fused layers of a spec. Core's memory management loads and unloads it beside the model."""

    def __init__(self, layers: Iterable[FusedLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


@dataclass(frozen=True)
class FusionSpec:
    """What is fused, and how. Frozen; shared by all clones that were made from it.

    ``bank`` is the patcher of the deltas. It lives as long as the spec: clones of the model carry clones of it, and
    core takes a loaded model for leaked when its last patcher dies before it.
    """

    loras: tuple[LoraOnModel, ...]
    policy: Policy
    bank: ModelPatcher = field(repr=False, compare=False, hash=False)
    refinement: Refinement = Refinement()

    @property
    def layers(self) -> list[FusedLayer]:
        return list(self.bank.model.layers)

    @property
    def header(self) -> dict[str, Any]:
        return {
            "policy": self.policy.settings(),
            "loras": tuple(lora.header() for lora in self.loras),
            "refinement": self.refinement.settings(),
        }

    @cached_property
    def content_id(self) -> str:
        return hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self.policy, self.refinement, self.layers)

    @property
    def emphasis(self) -> float:
        """How often the LoRAs' effect is to count in the picture.

        A policy's own is for fusing: one LoRA alone stays what core's loader makes of it.
        """
        return self.refinement.emphasis or (self.policy.own_emphasis if self.has_both_roles else 1.0)

    @property
    def shared_layers(self) -> int:
        return sum(any(segment.shared for segment in layer.segments) for layer in self.layers)

    @property
    def has_both_roles(self) -> bool:
        return len({lora.role for lora in self.loras}) > 1


@dataclass
class Attachment:
    """What rides on a ModelPatcher under :data:`ATTACHMENT`."""

    policy: Policy | None = None
    refinement: Refinement = Refinement()
    spec: FusionSpec | None = None
    live: LiveFusion | None = None
    merged: list[Any] = field(default_factory=list)
    shown_on: str | None = None  # execution id of the node that shows the routing map


def attachment_of(model: ModelPatcher) -> Attachment:
    return model.get_attachment(ATTACHMENT) or Attachment()


def show_on(model: ModelPatcher, node: str | None, *, sets_policy: bool) -> ModelPatcher:
    """The same model, with its routing map shown on the node that just made it.

    A loader leaves it to the router, wherever that stands. The attachment is changed in place: it is as new as the
    model.
    """
    held = attachment_of(model)
    if node is not None and (sets_policy or held.policy is None):
        held.shown_on = node
        if held.live is not None:
            held.live.shown_on = node
    return model


def add_loras(model: ModelPatcher, loras: Iterable[tuple[LoraPatches, str, float]]) -> ModelPatcher:
    """A clone of the model with LoRAs on it: routable deltas in the fusion spec, the rest merged by core.

    Args:
        model: may already carry LoRAs; they stay.
        loras: patches, role and strength of each. LoRAs of strength 0 are left out, as core does.
    """
    model = model.clone()
    held = attachment_of(model)
    on_model = list(held.spec.loras) if held.spec else []
    for patches, role, strength in loras:
        if strength == 0:
            continue
        remember(model, [patches.parent(role, strength)])
        if patches.merged:
            model.add_patches({t.core_key: patch for t, (patch, _) in patches.merged.items()}, strength)
        if patches.routed:
            file = patches.file
            on_model.append(LoraOnModel(file.name, role, strength, file.digest, patches.routed, patches.core_patches))
    if on_model:
        bank = _bank_patcher(build_bank(model, on_model), model.load_device, model.offload_device)
        spec = FusionSpec(tuple(on_model), held.policy or RECOMMENDED, bank, held.refinement)
        _attach(model, held, spec, held.policy, held.refinement)
    return model


def set_policy(
    model: ModelPatcher, policy: Policy, refinement: Refinement | None = None, *, always_live: bool = False
) -> ModelPatcher:
    """A clone of the model whose LoRAs, those on it and those still to come, are fused by the policy.

    Args:
        refinement: settings that apply to any policy; neutral ones if None.
        always_live: run the plain sum at run time too, instead of leaving it to core's merge (to check the one
            against the other).
    """
    model = model.clone()
    held, refinement = attachment_of(model), refinement or Refinement()
    spec = FusionSpec(held.spec.loras, policy, held.spec.bank, refinement) if held.spec else None
    _attach(model, held, spec, policy, refinement, always_live=always_live)
    return model


def _attach(
    model: ModelPatcher,
    held: Attachment,
    spec: FusionSpec | None,
    policy: Policy | None,
    refinement: Refinement,
    *,
    always_live: bool = False,
) -> None:
    _detach(model, held)
    now = Attachment(policy, refinement, spec, shown_on=held.shown_on)
    if spec is not None and isinstance(spec.policy, StaticPolicy) and not (always_live or _in_live_sum(spec)):
        now.merged = merged_patches(spec)
        for patches, strength in now.merged:
            model.add_patches(patches, strength)
    elif spec is not None:
        key = f"{ATTACHMENT}:{spec.content_id}"
        now.live = LiveFusion(spec, held.shown_on)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, now.live.outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, now.live.apply_model)
        model.set_additional_models(key, [spec.bank.clone()])
    model.set_attachments(ATTACHMENT, now)


def _in_live_sum(spec: FusionSpec) -> bool:
    """Whether the plain sum has to run live: what is merged beforehand is the same in every pass."""
    policy = spec.policy
    return isinstance(policy, StaticPolicy) and policy.is_sum and spec.refinement.emphasis not in (0.0, 1.0)


def _detach(model: ModelPatcher, held: Attachment) -> None:
    """Take off what an earlier policy put on this clone; patches of others stay."""
    if held.live is not None:
        key = f"{ATTACHMENT}:{held.live.spec.content_id}"
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, key)
        model.remove_additional_models(key)
    if held.merged:
        ours = {id(patch) for patches, _ in held.merged for patch in patches.values()}
        for key, patches in list(model.patches.items()):
            left = [entry for entry in patches if id(entry[1]) not in ours]
            if left:
                model.patches[key] = left
            else:
                del model.patches[key]
        model.add_patches({}, 0)  # tells core that the weights have changed


def build_bank(model: ModelPatcher, loras: Iterable[LoraOnModel]) -> DeltaBank:
    """Join the deltas of all LoRAs by layer."""
    by_layer: dict[str, list[tuple[str, float, Delta]]] = {}
    for lora in loras:
        for target, delta in lora.deltas.items():
            by_layer.setdefault(target.key, []).append((lora.role, lora.strength, delta))
    dtype = model.model.get_dtype_inference()
    layers = []
    # Nodes run under inference mode, and autograd refuses tensors made there: guidance needs it not to.
    with torch.inference_mode(False), torch.no_grad():
        for key, deltas in by_layer.items():
            geometry = geometry_of(model.model, key)
            assert not isinstance(geometry, str)
            name = key.removesuffix(".weight")
            heads = head_width(model.model, name)
            layers.append(FusedLayer(name, geometry, deltas, dtype, weight_reader(model, key), heads))
    return DeltaBank(layers)


def _bank_patcher(bank: DeltaBank, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    patcher = ModelPatcher(bank, load_device=load_device, offload_device=offload_device)
    # Core asks for a factory where it copies a model to a second GPU; the copy needs its own tensors.
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (_bank_copy, (bank, load_device, offload_device))
    return patcher


def _bank_copy(
    bank: DeltaBank, load_device: torch.device, offload_device: torch.device, disable_dynamic: bool = False
) -> ModelPatcher:
    with torch.inference_mode(False), torch.no_grad():
        return _bank_patcher(copy.deepcopy(bank), load_device, offload_device)
