"""What is written to a baked LoRA: the layers of a model or a text encoder, and how their deltas are fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...fusion.adapters import Delta, Geometry
from ...fusion.averaging import Kept, Losses
from ...fusion.baking import BakedWeights, Factors, baked_weights, weighted
from ...fusion.layers import FusedLayer, SegmentDeltas
from ...fusion.policies import PassPolicy, StaticPolicy
from ...fusion.records import RoutingRecord
from ...fusion.roles import ROLES
from ..core import ConductorError, geometry_of, weight_reader
from ..fusing import FusionSpec, attachment_of, left_on
from ..loras import Entry, Target, Unroutable, delta_of, loras_on
from .alone import alone_of
from .names import Naming, naming_of, text_naming

# A segment's fused delta from those of its roles; None where nobody knows its weights.
Fuse = Callable[[SegmentDeltas], "Factors | Tensor | None"]


@dataclass(frozen=True)
class Source:
    """One of the models a LoRA file is for.

    Attributes:
        layers: the deltas on it, joined by weight.
        fuse: how they become one.
        merged: strength and entry of what core merges.
        shapes: of all weights of the two.
        naming: their names in the file.
        alone: by weight, the tensors of updates that keep their kind of adapter.
        losses: what the weights average away of a run; None where no run decided.
    """

    layers: list[FusedLayer]
    fuse: Fuse
    merged: list[tuple[float, Entry]]
    shapes: dict[str, tuple[int, ...]]
    naming: Naming
    alone: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    losses: Losses | None = None


def summed(deltas: SegmentDeltas) -> Factors:
    """Everything at its own strength."""
    return weighted(deltas, dict.fromkeys(ROLES, 1.0))


def text_source(clip: CLIP, kohya: bool) -> Source:
    """The text-encoder parts of the LoRAs on a CLIP, which core merges as they are; ``kohya``: see :class:`Naming`."""
    module = clip.cond_stage_model
    layers: list[FusedLayer] = []
    merged: list[tuple[float, Entry]] = []
    deltas: dict[str, list[tuple[str, float, Delta]]] = {}
    for parent in loras_on(clip.patcher):
        for target, entry in parent.merged.items():
            delta = _delta(module, entry)
            if delta is None:
                merged.append((parent.strength, entry))
            else:
                deltas.setdefault(target.key, []).append((parent.role, parent.strength, delta))
    for key, own in deltas.items():
        geometry = geometry_of(module, key)
        assert isinstance(geometry, Geometry)
        reader = weight_reader(clip.patcher, key)
        layers.append(FusedLayer(key.removesuffix(".weight"), geometry, own, torch.float32, reader))
    shapes = _shapes(module, [*deltas, *(entry.target.key for _, entry in merged)])
    naming = text_naming(comfy.lora.model_lora_keys_clip(module, {}), shapes, kohya)
    return Source(layers, summed, merged, shapes, naming)


def _shapes(module: torch.nn.Module, keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Of weights, and of those whose biases are named; as they would be unpacked."""
    stored = module.state_dict()
    found = {}
    for key in keys:
        for name in (key, f"{key.removesuffix('.bias')}.weight"):
            geometry = geometry_of(module, name)
            if isinstance(geometry, Geometry):
                found[name] = geometry.weight_shape
            elif name in stored:
                found[name] = tuple(stored[name].shape)
    return found


def _delta(module: torch.nn.Module, entry: Entry) -> Delta | None:
    geometry = geometry_of(module, entry.target.key)
    if not isinstance(geometry, Geometry) or entry.target.function is not None:
        return None
    try:
        return delta_of(entry.patch, geometry, entry.target.offset)
    except Unroutable:
        return None


def push_of(spec: FusionSpec | None, kept: Kept | None) -> float:
    """How many times its weights a run added the LoRAs because its user asked for that, if it had no other pass."""
    if spec is None or kept is None or not kept.one_pass:
        return 1.0
    return spec.refinement.emphasis or 1.0


def model_source(model: ModelPatcher, record: RoutingRecord | None, kept: Kept | None, step: int | None) -> Source:
    """The diffusion-model parts of the LoRAs on a model, fused as a run decided at a step, or on average.

    Args:
        model: with LoRAs of ours.
        record, kept: of the run, or None.
        step: index from 0, or None for all.

    Raises:
        ConductorError: the run has no such step.
    """
    spec, parents = attachment_of(model).spec, loras_on(model)
    merged = [(parent.strength, entry) for parent in parents for entry in parent.merged.values()]
    targets = [target for parent in parents for target in (*parent.deltas, *parent.merged)]
    shapes = _shapes(model.model, [target.key for target in targets])
    targets += [Target(key) for key in shapes if key not in {target.key for target in targets}]
    losses = None if kept is None else Losses(kept, step)
    fuse = summed if spec is None else _fusion_of(spec, record, kept, step, model)

    def fuse_and_count(deltas: SegmentDeltas) -> Factors | Tensor | None:
        if losses is not None:
            losses.add(deltas)
        return fuse(deltas)

    return Source(
        spec.layers if spec is not None else [],
        fuse_and_count,
        merged,
        shapes,
        naming_of(model.model, comfy.lora.model_lora_keys_unet(model.model, {}), shapes, targets),
        {} if spec is not None and isinstance(spec.policy, PassPolicy) else alone_of(parents),
        losses,
    )


def _fusion_of(
    spec: FusionSpec, record: RoutingRecord | None, kept: Kept | None, step: int | None, model: ModelPatcher
) -> Fuse:
    policy = spec.policy
    if record is not None:
        try:
            weights = baked_weights(policy, record, step, kept)
        except ValueError as error:
            raise ConductorError(f"step: {error}. Choose another step, or set steps to 'average'.") from error
        left, push = left_on(model), push_of(spec, kept)
        stacked = {segment.name for layer in spec.layers if layer.name in left for segment in layer.segments}
        return lambda deltas: summed(deltas) if deltas.name in stacked else _routed(deltas, weights, push)
    if isinstance(policy, StaticPolicy) and not policy.is_sum:
        device = _device(model)
        return lambda deltas: _merged(deltas, policy, device)
    return summed


def _routed(deltas: SegmentDeltas, weights: BakedWeights, push: float) -> Factors | None:
    own = weights.shared.get(deltas.name) if set(deltas.up) == set(ROLES) else weights.alone
    return None if own is None else weighted(deltas, {role: weight * push for role, weight in own.items()})


def _merged(deltas: SegmentDeltas, policy: StaticPolicy, device: torch.device) -> Factors | Tensor:
    if not policy.exact_factors:
        up, down = ({role: t.to(device) for role, t in factors.items()} for factors in (deltas.up, deltas.down))
        deltas = SegmentDeltas(deltas.name, down, up)
    return policy.merge(deltas) if set(deltas.up) == set(ROLES) else summed(deltas)


def _device(model: ModelPatcher) -> torch.device:
    """Where dense merges are computed: other accelerators lack the decompositions they need."""
    return model.load_device if model.load_device.type == "cuda" else torch.device("cpu")
