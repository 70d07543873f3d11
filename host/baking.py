"""Fused LoRAs as one ordinary LoRA: what a run decided, or what a static policy merges, written down per weight."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..fusion.baked_weights import BakedWeights, baked_weights
from ..fusion.baking import Factors, assembled, weighted
from ..fusion.deltas import DeltaError
from ..fusion.layers import FusedLayer
from ..fusion.policies import StaticPolicy
from ..fusion.record import RoutingRecord
from ..fusion.segments import ROLES, SegmentDeltas
from .baked_merged import add_merged
from .baked_sources import Fuse, Source, summed, text_source
from .baked_tensors import BakedTensors
from .errors import ConductorError
from .fusion_patch import FusionSpec, attachment_of
from .lora_resolving import Target
from .parents import parents_of
from .progress import Progress
from .routing import record_of_latent


@dataclass(frozen=True)
class BakeSettings:
    """What to write.

    Attributes:
        step: index from 0 of the run's step whose weights are taken, or None for the mean over its steps.
        rank: the most a weight may have; 0 for as much as it needs.
        dtype: of the file.
    """

    step: int | None = None
    rank: int = 0
    dtype: torch.dtype = torch.float32


def bake(
    model: ModelPatcher, clip: CLIP | None, samples: Tensor | None, settings: BakeSettings
) -> tuple[BakedTensors, RoutingRecord | None]:
    """The LoRAs on a model as the tensors of one LoRA file, to be loaded at strength 1.

    Deltas that depend on the base weight (DoRA, OFT) are written as what they add to it as it is.

    Args:
        model: with LoRAs of ours.
        clip: with their text-encoder parts, to be written too.
        samples: the latent that the model made, ``[batch, channels, ...]``. Only policies that decide while sampling
            need it.
        settings: what to write.

    Returns:
        The tensors, and the record that gave the weights, if one was needed.

    Raises:
        ConductorError: the model carries no LoRAs, the latent is missing or not the model's, or the run has no such
            step.
    """
    spec = attachment_of(model).spec
    if not (parents_of(model) or (clip is not None and parents_of(clip.patcher))):
        raise ConductorError(
            "model: it carries no LoRAs of DualLoRADynamicLoader. Connect the model that goes into the sampler."
        )
    record = _record(model, spec, samples)
    sources = [_model_source(model, settings, record)]
    if clip is not None:
        sources.append(text_source(clip))
    baked = BakedTensors(settings.rank, settings.dtype)
    progress = Progress(sum(len(source.layers) for source in sources))
    for source in sources:
        for layer in source.layers:
            progress.step()
            _add_layer(baked, layer, source)
        add_merged(baked, source.merged, source.key_map, {f"{layer.name}.weight" for layer in source.layers})
    if not baked.tensors:
        raise ConductorError("model: its LoRAs add nothing that could be written. Raise their strengths.")
    return baked, record


def _model_source(model: ModelPatcher, settings: BakeSettings, record: RoutingRecord | None) -> Source:
    spec, parents = attachment_of(model).spec, parents_of(model)
    return Source(
        spec.layers if spec is not None else [],
        _fusion_of(spec, record, settings.step, _device(model)) if spec is not None else summed,
        {target: prefix for parent in reversed(parents) for target, prefix in parent.prefixes.items()},
        [(parent.strength, entry) for parent in parents for entry in parent.merged.values()],
        comfy.lora.model_lora_keys_unet(model.model, {}),
    )


def _record(model: ModelPatcher, spec: FusionSpec | None, samples: Tensor | None) -> RoutingRecord | None:
    """The record of the run, where one is needed to know the weights."""
    if spec is None or not spec.has_both_roles or isinstance(spec.policy, StaticPolicy):
        return None
    if samples is None:
        raise ConductorError(
            f"latent: the policy '{spec.policy.name}' decides while sampling. Connect the latent that the sampler made "
            "with this model."
        )
    return record_of_latent(model, samples)


def _fusion_of(spec: FusionSpec, record: RoutingRecord | None, step: int | None, device: torch.device) -> Fuse:
    policy = spec.policy
    if record is not None:
        try:
            weights = baked_weights(policy, record, step)
        except ValueError as error:
            raise ConductorError(f"step: {error}. Choose another step, or set steps to 'average'.") from error
        return lambda deltas: _routed(deltas, weights)
    if isinstance(policy, StaticPolicy) and not policy.is_sum:
        return lambda deltas: _merged(deltas, policy, device)
    return summed


def _routed(deltas: SegmentDeltas, weights: BakedWeights) -> Factors | None:
    if set(deltas.up) != set(ROLES):
        return weighted(deltas, weights.alone)
    own = weights.shared.get(deltas.name)
    return None if own is None else weighted(deltas, own)


def _merged(deltas: SegmentDeltas, policy: StaticPolicy, device: torch.device) -> Factors | Tensor:
    if not policy.exact_factors:
        up, down = ({role: t.to(device) for role, t in factors.items()} for factors in (deltas.up, deltas.down))
        deltas = SegmentDeltas(deltas.name, down, up)
    return policy.merge(deltas) if set(deltas.up) == set(ROLES) else summed(deltas)


def _device(model: ModelPatcher) -> torch.device:
    """Where dense merges are computed: other accelerators lack the decompositions they need."""
    return model.load_device if model.load_device.type == "cuda" else torch.device("cpu")


def _add_layer(baked: BakedTensors, layer: FusedLayer, source: Source) -> None:
    """Write a layer under its parents' own prefixes: whole, else by their slices, else under core's generic name."""
    parts: list[tuple[int, int, Factors | Tensor]] = []
    for segment in layer.segments:
        try:
            delta = source.fuse(layer.segment_deltas(segment))
        except DeltaError:
            baked.left_out[segment.name] = "it depends on the base weight, which cannot be read in this model"
            continue
        if delta is None:
            baked.left_out[segment.name] = "it did not run while the picture was sampled"
        else:
            parts.append((segment.start, segment.stop, delta))
    if not parts:
        return
    key, shape = f"{layer.name}.weight", layer.geometry.weight_shape
    whole = source.prefixes.get(Target(key))
    own = [source.prefixes.get(Target(key, (0, start, stop - start))) for start, stop, _ in parts]
    if whole is None and all(own):
        for prefix, (start, stop, delta) in zip(own, parts, strict=True):
            assert prefix is not None
            baked.add_delta(prefix, assembled([(0, delta)], (stop - start, *shape[1:])))
        return
    generic = (layer.name, f"text_encoders.{layer.name}")
    prefix = whole or next((name for name in generic if source.key_map.get(name) == key), None)
    if prefix is None:
        baked.left_out[layer.name] = "ComfyUI has no LoRA key for the whole weight"
        return
    baked.add_delta(prefix, assembled([(start, delta) for start, _, delta in parts], shape))
