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
from ...fusion.averaging import NEGATIVE, PICTURES, PLACES, STEPS, Losses, kept_of
from ...fusion.baking import Factors, assembled, baked_weights
from ...fusion.layers import FusedLayer
from ...fusion.policies import PassPolicy, Policy, StaticPolicy, title
from ...fusion.records import Plan, Replay, RoutingRecord
from ...fusion.roles import ROLES
from ...fusion.routing import name_of
from ..core import ConductorError, Origin, Progress, listed
from ..fusing import (
    FusionSpec,
    attachment_of,
    distance_of_latent,
    left_on,
    plan_of_latent,
    record_of_latent,
    said_of_left,
)
from ..loras import LoraOnModel, loras_on
from .file import RANKS, BakedFile, BakedTensors, write
from .fused import Source, model_source, push_of, text_source
from .header import headers_of, metadata_of, words_of
from .merged import add_merged, low_rank_parts
from .names import Reorder, covers

USUAL_CFG = (3.0, 5.0, 7.0)
Part = tuple[int, int, Factors | Tensor]  # of a weight: its first row, the one after its last, and their delta


@dataclass(frozen=True)
class BakeSettings:
    """What to write.

    Attributes:
        step: index from 0 of the run's step whose weights are taken, or None for the mean over its steps.
        rank: the most a weight may have; 0 for as much as it needs.
        dtype: of the file.
        origin: where the latent comes from, in a workflow.
        energy: the share of its energy that is kept of an update that is dense (DoRA, LoKr, OFT, ties ...); 1 for all.
    """

    step: int | None = None
    rank: int = 0
    dtype: torch.dtype = torch.float32
    origin: Origin | None = None
    energy: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConductorError(
                f"rank: {self.rank} is none. Set 0 for as much as the LoRAs need, or the most to keep."
            )
        if not 0 < self.energy <= 1:
            raise ConductorError(f"energy: {self.energy:g} is no share. Set one above 0, and 1 for all.")


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
    record, plan = _run(model, spec, samples, settings.origin)
    kept = None if record is None else kept_of(record, plan)
    sources = [model_source(model, record, kept, settings.step)]
    apart = None
    if record is not None and kept is not None and spec is not None and record.layers:
        weights = baked_weights(spec.policy, record, settings.step, kept).shared
        pairs = {name: (its[ROLES[0]], its[ROLES[1]]) for name, its in weights.items()}
        apart = distance_of_latent(model, samples, pairs, settings.origin, push_of(spec, kept))
    kohya = sources[0].naming.kohya
    if clip is not None:
        sources.append(text_source(clip, kohya))
    baked = BakedTensors(
        settings.rank, settings.dtype, kohya, enough=settings.energy, losses=sources[0].losses, apart=apart
    )
    progress = Progress(sum(len(source.layers) for source in sources))
    for source in sources:
        beside, rest = low_rank_parts(source.merged, source.shapes)
        for layer in source.layers:
            progress.step()
            key = f"{layer.name}.weight"
            if settings.rank == 0 and key not in beside and _add_as_it_is(baked, source, key):
                continue
            _add_weight(baked, source, key, _parts_of(baked, layer, source) + beside.pop(key, []))
        for key, parts in beside.items():
            _add_weight(baked, source, key, parts)
        written = {f"{layer.name}.weight" for layer in source.layers} | beside.keys()
        add_merged(baked, rest, source.naming, written)
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
        "called": None if policy is None else _called(policy),
        "step": None if record is None or settings.step is None else settings.step + 1,
        "steps": None if record is None else record.steps,
    }
    file = write(baked, metadata_of(baked, parents, texts, fusion, prompt, extra), filename_prefix)
    weights = _weights_in_words(baked, record, settings, policy)
    notes = [
        *_notes(spec, baked, bool(texts), _others_patch(model, parents), left_on(model)),
        *_readers(baked),
        *words_of(headers_of((*parents, *texts))),
    ]
    return file, _report(baked, file, weights, notes)


def _run(
    model: ModelPatcher, spec: FusionSpec | None, samples: Tensor | None, origin: Origin | None
) -> tuple[RoutingRecord | None, Plan | None]:
    """The record of the run, where one is needed to know the weights; and its plan, if it is still there."""
    decided = attachment_of(model).live is not None and spec is not None and not isinstance(spec.policy, StaticPolicy)
    if spec is None or not decided or not spec.has_both_roles:
        return None, None
    if samples is None:
        raise ConductorError(
            f"latent: the policy '{name_of(spec.policy)}' decides while sampling. Connect the latent that the sampler "
            "made with this model."
        )
    record = record_of_latent(model, samples, origin)
    try:
        return record, plan_of_latent(model, samples, origin)
    except ConductorError:
        return record, None


def _parts_of(baked: BakedTensors, layer: FusedLayer, source: Source) -> list[Part]:
    """A layer's fused deltas by runs of its output channels; those that are not known are named."""
    parts: list[Part] = []
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
    return parts


def _add_as_it_is(baked: BakedTensors, source: Source, key: str) -> bool:
    """Write a weight's only update in its own kind, if it has one and the file has one name for the weight."""
    slots = source.naming.slots.get(key, ())
    if key not in source.alone or len(slots) != 1 or slots[0].reorder is not None:
        return False
    baked.add_as_it_is(slots[0].prefix, source.alone[key])
    return True


def _add_weight(baked: BakedTensors, source: Source, key: str, parts: list[Part]) -> None:
    """Write a weight's delta under the names that the file has for it: whole, or cut as they are."""
    shape, slots = source.shapes[key], source.naming.slots.get(key, ())
    for slot in slots:
        own = []
        for start, stop, delta in parts:
            first, last = max(start, slot.start), min(stop, slot.stop)
            if first < last:
                own.append((first - slot.start, _rows(delta, first - start, last - start)))
        if own:
            delta = assembled(own, (slot.stop - slot.start, *shape[1:]))
            baked.add_delta(slot.prefix, delta if slot.reorder is None else _rows_in(slot.reorder, delta))
    if key in source.naming.odd:
        baked.odd.add(key.removesuffix(".weight"))
    if not covers(slots, {(start, stop) for start, stop, _ in parts}):
        baked.left_out[key.removesuffix(".weight")] = "ComfyUI has no LoRA key for the whole weight"


def _rows(delta: Factors | Tensor, start: int, stop: int) -> Factors | Tensor:
    return (delta[0][start:stop], delta[1]) if isinstance(delta, tuple) else delta[start:stop]


def _rows_in(order: Reorder, delta: Factors | Tensor) -> Factors | Tensor:
    return (order(delta[0]), delta[1]) if isinstance(delta, tuple) else order(delta)


def _called(policy: Policy) -> str:
    """What users call it; of a replay, what decided when the plan was made."""
    return f"plan of {title(policy.plan.policy)}" if isinstance(policy, Replay) else name_of(policy)


def _weights_in_words(
    baked: BakedTensors, record: RoutingRecord | None, settings: BakeSettings, policy: Policy | None
) -> str:
    if record is not None and policy is not None:
        when = f"step {settings.step + 1}" if settings.step is not None else "the mean"
        alone = baked.losses is not None and baked.losses.kept.positive_alone
        passes = "the positive prompt's passes" if alone else "all passes"
        return f"{when} of {record.steps} steps of {passes}, decided by '{_called(policy)}'"
    return f"as merged by '{_called(policy)}'" if isinstance(policy, StaticPolicy) else "every LoRA whole"


def _distance(losses: Losses) -> Iterator[str]:
    """How far a file is from the run, in numbers."""
    shares = losses.shares
    if not shares:
        return
    by_step = losses.by_step
    near, far = (pick(range(len(by_step)), key=by_step.__getitem__) for pick in (min, max))
    parts = [f"{shares[name]:.1%} over {name}" for name in (STEPS, PICTURES, PLACES) if name in shares]
    yield f"averaged away of the LoRAs' energy in the run: {', '.join(parts)}"
    if len(by_step) > 1:
        ends = f"step {near + 1} ({by_step[near]:.1%} apart), farthest from step {far + 1} ({by_step[far]:.1%})"
        yield f"  nearest to {ends}"
    if NEGATIVE in shares:
        yield f"  the negative prompt's passes had weights {shares[NEGATIVE]:.1%} apart; the file has the positive's"


def _others_patch(model: ModelPatcher, parents: tuple[LoraOnModel, ...]) -> bool:
    """Whether somebody else's patches are on the model too."""
    ours = {id(entry.patch) for parent in parents for entry in parent.merged.values()}
    ours |= {id(patch) for placed in attachment_of(model).merged for patch in placed.patches.values()}
    return any(id(patch[1]) not in ours for patches in model.patches.values() for patch in patches)


def _notes(
    spec: FusionSpec | None, baked: BakedTensors, has_texts: bool, others_patch: bool, left: Mapping[str, str]
) -> Iterator[str]:
    """What a user should know besides."""
    if not has_texts:
        yield "text encoder: no part of the file. If the LoRAs trained one, connect the loader's CLIP"
    if spec is not None and isinstance(spec.policy, PassPolicy):
        yield f"'{name_of(spec.policy)}' runs the model once per LoRA; a file can only hold the mean of its LoRAs"
    kept = None if baked.losses is None else baked.losses.kept
    if spec is not None and spec.emphasis != 1.0 and not (kept is not None and kept.one_pass):
        often, asked = f"{spec.emphasis:g}", bool(spec.refinement.emphasis)
        alone = f"At CFG 1, load it at strength {often}. " if asked and kept is None else ""
        shares = ((cfg, spec.rules.push(cfg), spec.rules.negative_share(cfg)) for cfg in USUAL_CFG)
        hooks = ", ".join(f"{times:.3g} and {times * share:.3g} at CFG {cfg:g}" for cfg, times, share in shares)
        yield (
            f"emphasis: {alone}With CFG above 1 the router keeps the LoRAs out of the negative prompt's pass, so that "
            f"they count {often} times; a file gives both passes the same, and they count once. What can: 'Create Hook "
            f"LoRA' with this file, on the positive and the negative prompt at strength {hooks}; or the run's routing "
            "plan. With the router's emphasis at 1 you see what a file does"
        )
    if left:
        yield said_of_left(left)
    if others_patch:
        yield "LoRAs from other loaders on this model are no part of the file: keep loading them"


def _readers(baked: BakedTensors) -> Iterator[str]:
    """Who reads the file."""
    if baked.odd:
        yield (
            f"{len(baked.odd)} weights have names that ComfyUI alone knows, such as {min(baked.odd)}: other programs "
            "leave them out, and some refuse the file"
        )
    if baked.as_they_are:
        yield (
            f"{len(baked.as_they_are)} weights that one LoRA has alone keep its kind of adapter, such as "
            f"{min(baked.as_they_are)}: ComfyUI reads it, few other programs do. Any rank but 0 makes them plain"
        )
    beside = [key for key in baked.tensors if key.endswith((".diff", ".diff_b", ".set_weight"))]
    if beside:
        yield (
            f"{len(beside)} tensors are no low-rank updates (norms, biases, replaced weights), such as {min(beside)}: "
            "ComfyUI reads them, other programs leave them out or refuse the file"
        )


def _report(baked: BakedTensors, file: BakedFile, weights: str, notes: Iterable[str]) -> str:
    """In words: where the file is, the weights that were taken, ranks and losses, notes, and what is missing."""
    dtype = str(baked.dtype).removeprefix("torch.")
    lines = [f"written: {file.path}  ({file.path.stat().st_size / 1e6:.1f} MB, {dtype})"]
    if file.name is None:
        lines.append("  LoRA loaders do not look there: move it, or begin filename_prefix with loras/")
    else:
        lines.append(f"  LoRA loaders list it as {file.name}; load it at strength 1")
    lines.append(f"weights: {weights}")
    lines += _distance(baked.losses) if baked.losses is not None else ()
    if baked.apart is not None:
        step, share = baked.apart
        lines.append(
            f"a picture's distance: at step {step + 1} the model predicts one {share:.1%} of its range away from the "
            "run's (root mean square), before rank and rounding"
        )
    if baked.ranks:
        lines.append(f"{len(baked.ranks)} weights, of rank {max(baked.ranks.values())} at most")
        if baked.dense and baked.rank == 0 and baked.enough == 1:
            lines.append(
                f"  {len(baked.dense)} of them are of full rank, larger than their weights: energy below 1 cuts them"
            )
        lost = baked.lost.values()
        worst = max(baked.lost, key=baked.lost.__getitem__)
        lines.append(
            f"energy kept: {1 - sum(lost) / len(lost):.3%} on average, {1 - baked.lost[worst]:.3%} at worst ({worst})"
        )
        kept = [(rank, baked.energies[rank] / baked.energy) for rank in RANKS if rank < max(baked.ranks.values())]
        if kept:
            lines.append("a lower rank would keep: " + ", ".join(f"{rank}: {share:.1%}" for rank, share in kept))
    lines += notes
    if baked.left_out:
        lines.append(f"{len(baked.left_out)} things are not in the file:")
        lines += listed(f"{name}: {why}" for name, why in baked.left_out.items())
    return "\n".join(lines)
