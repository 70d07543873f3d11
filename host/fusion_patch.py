"""LoRAs and their policy on a ModelPatcher: attached to clones, installed by name for the time of a model call.

Nothing on the model is touched when a node runs. The clone carries a frozen spec and two wrappers; the OUTER_SAMPLE
wrapper opens a run, the APPLY_MODEL wrapper finds the layers by name on whichever model really executes (another
device's copy, a compiled one), swaps their forwards for one call and puts them back whatever happens.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..fusion.deltas import LowRankDelta
from ..fusion.layers import Decision, FusedLayer
from ..fusion.policies import RECOMMENDED, Policy
from ..fusion.record import RoutingRecord
from .errors import ConductorError
from .lora_files import LoraPatches, Target, geometry_of
from .run import Run

ATTACHMENT = "lora_conductor"
KEPT_RUNS = 8


@dataclass(frozen=True)
class LoraOnModel:
    """One LoRA with its role and strength."""

    name: str
    role: str
    strength: float
    digest: str
    deltas: dict[Target, LowRankDelta] = field(repr=False, compare=False, hash=False)

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

    @property
    def layers(self) -> Iterable[FusedLayer]:
        return self.bank.model.layers

    @property
    def content_id(self) -> str:
        content = [self.policy.settings(), *(lora.header() for lora in self.loras)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shared_layers(self) -> int:
        return sum(any(segment.shared for segment in layer.segments) for layer in self.layers)


@dataclass
class Attachment:
    """What rides on a ModelPatcher under :data:`ATTACHMENT`."""

    policy: Policy | None = None
    spec: FusionSpec | None = None
    wrapper: FusionWrapper | None = None


def attachment_of(model: ModelPatcher) -> Attachment:
    return model.get_attachment(ATTACHMENT) or Attachment()


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
        if patches.merged:
            model.add_patches({t.core_key: patch for t, (patch, _) in patches.merged.items()}, strength)
        if patches.routed:
            on_model.append(LoraOnModel(patches.file.name, role, strength, patches.file.digest, patches.routed))
    if on_model:
        spec = FusionSpec(
            tuple(on_model), held.policy or RECOMMENDED, _bank_patcher(build_bank(model, on_model), model)
        )
        _attach(model, held, spec, held.policy)
    return model


def set_policy(model: ModelPatcher, policy: Policy) -> ModelPatcher:
    """A clone of the model whose LoRAs, those on it and those still to come, are fused by the policy."""
    model = model.clone()
    held = attachment_of(model)
    spec = FusionSpec(held.spec.loras, policy, held.spec.bank) if held.spec else None
    _attach(model, held, spec, policy)
    return model


def _attach(model: ModelPatcher, held: Attachment, spec: FusionSpec | None, policy: Policy | None) -> None:
    if held.spec is not None:
        old = f"{ATTACHMENT}:{held.spec.content_id}"
        model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, old)
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, old)
        model.remove_additional_models(old)
    wrapper = None
    if spec is not None:
        key = f"{ATTACHMENT}:{spec.content_id}"
        wrapper = FusionWrapper(spec)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, wrapper.outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, wrapper.apply_model)
        model.set_additional_models(key, [spec.bank.clone()])
    model.set_attachments(ATTACHMENT, Attachment(policy, spec, wrapper))


def build_bank(model: ModelPatcher, loras: Iterable[LoraOnModel]) -> DeltaBank:
    """Join the deltas of all LoRAs by layer."""
    by_layer: dict[str, list[tuple[str, float, LowRankDelta]]] = {}
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
            layers.append(FusedLayer(key.removesuffix(".weight"), geometry, deltas, dtype))
    return DeltaBank(layers)


def _bank_patcher(bank: DeltaBank, model: ModelPatcher) -> ModelPatcher:
    patcher = ModelPatcher(bank, load_device=model.load_device, offload_device=model.offload_device)
    # Core asks for a factory where it copies a model to a second GPU; the copy needs its own tensors.
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (_bank_copy, (bank, model))
    return patcher


def _bank_copy(bank: DeltaBank, model: ModelPatcher, disable_dynamic: bool = False) -> ModelPatcher:
    with torch.inference_mode(False), torch.no_grad():
        return _bank_patcher(copy.deepcopy(bank), model)


class FusionWrapper:
    """The wrappers of one spec. Holds the open runs (sampling may nest) and the records of the last few."""

    def __init__(self, spec: FusionSpec) -> None:
        self.spec = spec
        self._open: list[Run] = []
        self._records: list[tuple[Tensor, RoutingRecord]] = []

    def outer_sample(self, executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Open a run around a whole sampling (core's ``CFGGuider.outer_sample``)."""
        self._check()
        arguments = list(args)
        # Positions after noise and latent_image: sampler, sigmas, denoise_mask, callback, ...
        run = Run(sigmas=(arguments[1] if len(arguments) > 1 else kwargs["sigmas"]).cpu())
        if len(arguments) > 3:
            arguments[3] = run.counting(arguments[3])
        else:
            kwargs["callback"] = run.counting(kwargs.get("callback"))
        self._open.append(run)
        try:
            samples = executor(noise, latent_image, *arguments, **kwargs)
        finally:
            self._open.remove(run)
        record = run.record(
            {"policy": self.spec.policy.settings(), "loras": tuple(lora.header() for lora in self.spec.loras)}
        )
        self._records = [*self._records[1 - KEPT_RUNS :], (samples.detach().cpu().clone(), record)]
        return samples

    def apply_model(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run one model call with the fused forwards in place (core's ``BaseModel.apply_model``)."""
        decisions: list[Decision] = []
        with installed(self.spec, executor.class_obj, decisions):
            output = executor(x, t, *args, **kwargs)
        if self._open:
            options = kwargs.get("transformer_options") or (args[3] if len(args) > 3 else {})
            self._open[-1].keep(decisions, tuple(options.get("cond_or_uncond", ())))
        return output

    def record_of(self, samples: Tensor) -> RoutingRecord | None:
        """The record of the run that made these samples, if it is one of the last few."""
        for made, record in reversed(self._records):
            if made.shape == samples.shape and torch.equal(made, samples.to(made)):
                return record
        return None

    def _check(self) -> None:
        spec = self.spec
        roles = {lora.role for lora in spec.loras}
        if len(roles) > 1 and spec.shared_layers == 0 and spec.policy.constant_weights() is None:
            names = " and ".join(f"'{lora.name}'" for lora in spec.loras)
            raise ConductorError(
                f"{names} have no layer in common, so the policy '{spec.policy.name}' has nothing to decide. "
                "Set KLLayerRouter's policy to 'sum' to apply both as they are."
            )


@contextmanager
def installed(spec: FusionSpec, model: nn.Module, decisions: list[Decision]) -> Iterator[None]:
    """Swap the forwards of the spec's layers on this very model, and put them back."""
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for layer in spec.layers:
            module = _find(model, layer.name)
            replaced.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _fused_forward(layer, module.forward, spec.policy, decisions)
        yield
    finally:
        for module, before in reversed(replaced):
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


def _fused_forward(layer: FusedLayer, base_forward: Any, policy: Policy, decisions: list[Decision]) -> Any:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer.fuse(x, base_forward(x, *args, **kwargs), policy, decisions)

    return forward


def _find(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, looked up through ``torch.compile``'s wrapper modules."""
    module: Any = model
    for part in name.split("."):
        module = getattr(module, "_orig_mod", module)
        module = getattr(module, part)
    return getattr(module, "_orig_mod", module)
