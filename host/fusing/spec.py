"""What is fused on a model, and how: frozen, and shared by all clones that were made from it."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...fusion.adapters import Delta
from ...fusion.layers import Bases, FusedLayer, whole_of
from ...fusion.policies import PassPolicy, Policy, ScoredPolicy
from ...fusion.records import Effects, Plan, Replay
from ...fusion.routing import OWN, Refinement, Rules, prepare
from ..core import ConductorError, attention_parts, blocks_of, geometry_of, sees_text, weight_reader
from ..loras import LoraOnModel

BASES = Bases(1 << 30)  # two files of rank 128 for a model of SDXL's size


class DeltaBank(nn.Module):
    """All fused layers of a spec. Core's memory management loads and unloads it beside the model.

    Attributes:
        blocks: whose blocks the model has (:func:`~..core.family.blocks_of`).
    """

    def __init__(self, layers: Iterable[FusedLayer], blocks: str = "") -> None:
        super().__init__()
        self.blocks = blocks
        self._layers = nn.ModuleList(layers)
        self.content = uuid.uuid4().hex  # the same in its copies for other devices

    @cached_property  # asked for in every model call
    def layers(self) -> list[FusedLayer]:
        return [layer for layer in self._layers if isinstance(layer, FusedLayer)]


@dataclass(frozen=True)
class FusionSpec:
    """What is fused, and how. Frozen; shared by all clones that were made from it.

    ``settled`` are the names of layers that are weight patches already, though the policy decides while sampling.

    ``bank`` is the patcher of the deltas. It lives as long as the spec: clones of the model carry clones of it, and
    core takes a loaded model for leaked when its last patcher dies before it.
    """

    loras: tuple[LoraOnModel, ...]
    policy: Policy
    bank: ModelPatcher = field(repr=False, compare=False, hash=False)
    refinement: Refinement = Refinement()
    settled: frozenset[str] = frozenset()

    @property
    def layers(self) -> list[FusedLayer]:
        return self.bank.model.layers

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
    def rules(self) -> Rules:
        blocks = self.bank.model.blocks
        return Rules(self.policy, self.refinement, prepare(self.policy, self.refinement, self.layers, blocks), blocks)

    @cached_property
    def effects(self) -> Effects:
        """What the LoRAs do in the layers before they are weighted: as the policy measures it, or as the files say."""
        pairings = self.rules.prepared.pairings
        return Effects(self.measures_energies, {name: (p.loudness or 0.0) + p.turned for name, p in pairings.items()})

    @property
    def measures_energies(self) -> bool:
        """Whether the policy's scores are how far each LoRA moves the features."""
        own = self.refinement.score == OWN
        return (
            isinstance(self.policy, ScoredPolicy) and (self.policy.score if own else self.refinement.score) == "energy"
        )

    @property
    def concerns_lone_layers(self) -> bool:
        """Whether layers that one role has to itself are not simply what core's loaders make of them.

        A plan without its second role is one that is refused when the sampling begins, so that something has to begin.
        """
        if isinstance(self.policy, Replay) and not self.has_both_roles:
            return True
        return self.emphasis != 1.0 or (isinstance(self.policy, PassPolicy) and self.has_both_roles)

    def layers_on(self, model: nn.Module) -> list[FusedLayer]:
        """The deltas where that model runs: core gives each copy of a model on another device a copy of the bank."""
        patcher = getattr(model, "current_patcher", None)
        for beside in patcher.get_additional_models() if patcher is not None else ():
            if isinstance(beside.model, DeltaBank) and beside.model.content == self.bank.model.content:
                return beside.model.layers
        return self.layers

    @property
    def emphasis(self) -> float:
        """How often the LoRAs' effect is to count in the picture.

        A policy's own is for fusing: where no layer is shared, LoRAs stay what core's loaders make of them.
        """
        return self.rules.asked_emphasis if self.refinement.emphasis or self.shared_layers else 1.0

    @cached_property
    def shared(self) -> list[FusedLayer]:
        """The layers that both roles touch."""
        return [layer for layer in self.layers if any(segment.shared for segment in layer.segments)]

    @property
    def shared_layers(self) -> int:
        return len(self.shared)

    @property
    def has_both_roles(self) -> bool:
        return len({lora.role for lora in self.loras}) > 1


def bank_for(model: ModelPatcher, loras: Iterable[LoraOnModel]) -> ModelPatcher:
    """The deltas of all LoRAs, joined by layer, on a patcher that is loaded where the model is."""
    by_layer: dict[str, list[tuple[str, float, Delta]]] = {}
    for lora in loras:
        for target, delta in lora.deltas.items():
            if delta.is_zero:
                continue  # as if the file did not have it: pruned and block-weighted files are full of them
            by_layer.setdefault(target.key, []).append((lora.role, lora.strength, delta))
    dtype = model.model.get_dtype_inference()
    parts, layers = attention_parts(model.model), []
    # Nodes run under inference mode, and autograd refuses tensors made there: guidance needs it not to.
    with torch.inference_mode(False), torch.no_grad():
        for key, deltas in by_layer.items():
            geometry = geometry_of(model.model, key)
            assert not isinstance(geometry, str)
            name = key.removesuffix(".weight")
            layers.append(
                FusedLayer(
                    name,
                    geometry,
                    deltas,
                    dtype,
                    weight_reader(model, key),
                    parts.get(name, ()),
                    sees_text(name),
                    BASES,
                )
            )
    return _patcher_of(DeltaBank(layers, blocks_of(model.model)), model.load_device, model.offload_device)


def _patcher_of(bank: DeltaBank, load_device: torch.device, offload_device: torch.device) -> ModelPatcher:
    patcher = ModelPatcher(bank, load_device=load_device, offload_device=offload_device)
    # Core asks for a factory where it copies a model to a second GPU; the copy needs its own tensors.
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (_copy_of, (bank, load_device, offload_device))
    return patcher


def _copy_of(
    bank: DeltaBank, load_device: torch.device, offload_device: torch.device, disable_dynamic: bool = False
) -> ModelPatcher:
    with torch.inference_mode(False), torch.no_grad():
        return _patcher_of(copy.deepcopy(bank), load_device, offload_device)


def check_plan(spec: FusionSpec, plan: Plan, *, more_to_come: bool = False) -> None:
    """Whether a plan is of the LoRAs that are on a model, by content and role, whatever the files are called; and of
    layers that they meet on.

    Args:
        more_to_come: whether other loaders may follow, so that not all of the plan's LoRAs have to be there.

    Raises:
        ConductorError: it is not.
    """
    planned = Counter((lora["sha256"], lora["role"]) for lora in plan.loras)
    carried = Counter((lora.digest, lora.role) for lora in spec.loras)
    if planned == carried:
        _check_layers(spec, plan)
    elif not more_to_come and not carried - planned:
        missing = [lora for lora in plan.loras if (lora["sha256"], lora["role"]) in planned - carried]
        named = " and ".join(f"{lora['role']} '{lora['name']}'" for lora in missing)
        raise ConductorError(
            f"plan: it also decides for {named}, which the model does not carry: the loader has no such file, or its "
            "strength is 0. Give it another strength (the picture is the plan's own at the strength that the plan was "
            "made with), or take the plan off KLLayerRouter."
        )
    elif not more_to_come or carried - planned:
        wanted = " and ".join(f"{lora['role']} '{lora['name']}' ({lora['sha256'][:10]})" for lora in plan.loras)
        found = " and ".join(f"{lora.role} '{lora.name}' ({lora.digest[:10]})" for lora in spec.loras)
        raise ConductorError(
            f"plan: it was made for {wanted}, but the model carries {found}. Load the plan's own LoRA files, put "
            "KLLayerRouter after the last loader, or make a new plan."
        )


def _check_layers(spec: FusionSpec, plan: Plan) -> None:
    known = {s.name: s.stop - s.start for layer in spec.layers for s in layer.segments if s.shared}
    cut = {whole_of(name) for name in known}
    unknown = [name for name in plan.layers if name not in known and name not in cut]
    if unknown:
        raise ConductorError(
            f"plan: it decides {len(unknown)} layers that both LoRAs do not have in this model, such as "
            f"'{unknown[0][:200]}'. Use the model it was made with, or make a new plan."
        )
    for name, heads in plan.heads.items():
        channels = known.get(name)
        if len(heads - {1}) > 1 or (channels is not None and any(channels % number for number in heads)):
            raise ConductorError(
                f"plan: its weights of '{name}' are for {' and '.join(map(str, sorted(heads)))} heads, which do not "
                f"divide the layer's {channels} channels. Make a new plan."
            )
