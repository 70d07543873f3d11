"""Fused LoRAs as one ordinary LoRA: what a run decided, or what a static policy merges, written down per weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...fusion.adapters import DeltaError
from ...fusion.baking import Factors, assembled
from ...fusion.layers import FusedLayer
from ...fusion.policies import PassPolicy, Policy, StaticPolicy
from ...fusion.records import RoutingRecord
from ...fusion.routing import name_of
from ..core import ConductorError, Origin, Progress, listed
from ..fusing import FusionSpec, attachment_of, left_on, record_of_latent, said_of_left
from ..loras import LoraOnModel, Target, loras_on
from .file import BakedFile, BakedTensors, metadata_of, write
from .fused import Source, model_source, text_source
from .merged import add_merged


@dataclass(frozen=True)
class BakeSettings:
    """What to write.

    Attributes:
        step: index from 0 of the run's step whose weights are taken, or None for the mean over its steps.
        rank: the most a weight may have; 0 for as much as it needs.
        dtype: of the file.
        origin: where the latent comes from, in a workflow.
    """

    step: int | None = None
    rank: int = 0
    dtype: torch.dtype = torch.float32
    origin: Origin | None = None


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
    if not (loras_on(model) or (clip is not None and loras_on(clip.patcher))):
        raise ConductorError(
            "model: it carries no LoRAs of DualLoRADynamicLoader. Connect the model that goes into the sampler."
        )
    record = _record(model, spec, samples, settings.origin)
    sources = [model_source(model, record, settings.step)]
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


def bake_to_file(
    model: ModelPatcher,
    clip: CLIP | None,
    samples: Tensor | None,
    settings: BakeSettings,
    filename_prefix: str,
    prompt: Any = None,
    extra: Any = None,
) -> tuple[BakedFile, str]:
    """Bake, write and report.

    Args:
        model, clip, samples, settings: see :func:`bake`.
        filename_prefix: see :func:`.file.write`.
        prompt, extra: see :func:`.file.metadata_of`.

    Returns:
        The file, and the report: what was written where, how much of it the rank could hold, and what is missing.

    Raises:
        ConductorError: see :func:`bake` and :func:`.file.write`.
    """
    baked, record = bake(model, clip, samples, settings)
    spec = attachment_of(model).spec
    policy = spec.policy if spec is not None else None
    parents = loras_on(model)
    texts = loras_on(clip.patcher) if clip is not None else ()
    fusion = {
        "policy": policy.settings() if policy is not None else None,
        "step": None if record is None or settings.step is None else settings.step + 1,
        "steps": None if record is None else record.steps,
    }
    file = write(baked, metadata_of(baked, parents, texts, fusion, prompt, extra), filename_prefix)
    weights = _weights_in_words(record, settings, policy)
    notes = _notes(spec, record, bool(texts), _others_patch(model, parents), left_on(model))
    return file, _report(baked, file, weights, notes)


def _record(
    model: ModelPatcher, spec: FusionSpec | None, samples: Tensor | None, origin: Origin | None
) -> RoutingRecord | None:
    """The record of the run, where one is needed to know the weights."""
    decided = attachment_of(model).live is not None and spec is not None and not isinstance(spec.policy, StaticPolicy)
    if spec is None or not decided or not spec.has_both_roles:
        return None
    if samples is None:
        raise ConductorError(
            f"latent: the policy '{name_of(spec.policy)}' decides while sampling. Connect the latent that the sampler "
            "made with this model."
        )
    return record_of_latent(model, samples, origin)


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


def _weights_in_words(record: RoutingRecord | None, settings: BakeSettings, policy: Policy | None) -> str:
    if record is not None and policy is not None:
        when = f"step {settings.step + 1}" if settings.step is not None else "the mean"
        return f"{when} of {record.steps} steps decided by '{name_of(policy)}'"
    return f"as merged by '{name_of(policy)}'" if isinstance(policy, StaticPolicy) else "every LoRA whole"


def _others_patch(model: ModelPatcher, parents: tuple[LoraOnModel, ...]) -> bool:
    """Whether somebody else's patches are on the model too."""
    ours = {id(entry.patch) for parent in parents for entry in parent.merged.values()}
    ours |= {id(patch) for placed in attachment_of(model).merged for patch in placed.patches.values()}
    return any(id(patch[1]) not in ours for patches in model.patches.values() for patch in patches)


def _notes(
    spec: FusionSpec | None,
    record: RoutingRecord | None,
    has_texts: bool,
    others_patch: bool,
    left: Mapping[str, str],
) -> Iterator[str]:
    """What a user should know besides."""
    if not has_texts:
        yield "text encoder: no part of the file. If the LoRAs trained one, connect the loader's CLIP"
    if spec is not None and isinstance(spec.policy, PassPolicy):
        yield f"'{name_of(spec.policy)}' runs the model once per LoRA; a file can only hold the mean of its LoRAs"
    if spec is not None and spec.emphasis != 1.0 and record is not None:
        yield (
            "emphasis: the router leaves part of the LoRAs out of the negative prompt's pass, a file cannot. Set its "
            "emphasis to 1 and sample again to see and bake what the file will do"
        )
    if left:
        yield said_of_left(left)
    if others_patch:
        yield "LoRAs from other loaders on this model are no part of the file: keep loading them"


def _report(baked: BakedTensors, file: BakedFile, weights: str, notes: Iterable[str]) -> str:
    """In words: where the file is, the weights that were taken, ranks and losses, notes, and what is missing."""
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
        lines += listed(f"{name}: {why}" for name, why in baked.left_out.items())
    return "\n".join(lines)
