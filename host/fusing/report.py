"""What a loader did and what a run decided, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__ as comfyui_version

from ...fusion.records import RoutingRecord
from ..core import family_of, inputs_of, listed, pack_version, sources
from ..loras import LoraChoice, LoraPatches, loras_on
from ..maps import block_of
from .attach import Attachment, attachment_of, left_on
from .idle import without_effect
from .normal import usual
from .order import said_of_left
from .spec import FusionSpec
from .verdict import cfg_of, verdict


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA that was chosen, what it does to the model, and how many text-encoder weights it patched or left alone."""

    choice: LoraChoice
    patches: LoraPatches
    clip_weights: int
    clip_left: int = 0


def loader_report(
    model: ModelPatcher, clip_given: bool, loras: Sequence[LoadedLora], idle: Iterable[LoraChoice] = ()
) -> str:
    """A text for the node: per LoRA what was applied, merged, refused and left, and where the two meet.

    Args:
        model: the resulting model.
        clip_given: whether a CLIP was connected.
        loras: in the order they were loaded.
        idle: what was chosen, but does nothing at its strengths.
    """
    lines, held = [f"model: {family_of(model.model)}"], attachment_of(model)
    for lora in loras:
        choice, patches = lora.choice, lora.patches
        lines.append(f"\n{choice.role}: {patches.file.name}  (strength {choice.strength:g})")
        if choice.strength == 0:
            lines.append("  the model is left alone")
        else:
            lines += _routed(patches, held)
        if lora.clip_weights:
            lines.append(f"  {lora.clip_weights} text-encoder weights at strength {choice.clip_strength:g}")
        if lora.clip_left:
            lines.append(f"  {lora.clip_left} text-encoder weights left alone (strength {choice.clip_strength:g})")
        reasons: dict[str, list[str]] = {}
        for target, (_, reason) in patches.merged.items() if choice.strength != 0 else ():
            reasons.setdefault(reason, []).append(str(target))
        for reason, targets in reasons.items():
            lines.append(f"  {len(targets)} weights merged as ComfyUI does, not routed: {reason}")
            lines += listed(targets)
        if patches.refused:
            lines.append(f"  {len(patches.refused)} entries could not be applied:")
            lines += listed(f"{name}: {why}" for name, why in patches.refused.items())
        if patches.unmatched:
            hint = "" if clip_given else " (text-encoder keys need a CLIP connected)"
            lines.append(f"  {len(patches.unmatched)} keys match nothing in this model{hint}:")
            lines += listed(patches.unmatched)
        odd = patches.file.not_finite(sorted(patches.file.tensors.keys() - patches.applied))
        if odd:
            lines.append(f"  {len(odd)} keys that are not applied hold NaN or infinite values:")
            lines += listed(odd)
    lines += [f"\n{choice.role}: {choice.name}  (strength 0: not loaded)" for choice in idle]
    spec = held.spec
    if spec is not None and spec.has_both_roles:
        total = len(spec.layers)
        if spec.shared_layers:
            rest = (
                f"{spec.shared_layers} of {total} layers are touched by both and routed; the rest take their one LoRA"
            )
        else:
            rest = f"no layer is touched by both: nothing to route, each of the {total} layers takes its one LoRA whole"
        lines.append(f"\n{rest}")
        lines += without_effect(spec)
    left = left_on(model)
    if left:
        lines += [said_of_left(left), *listed(left)]
    return "\n".join([_headline(spec, [lora.patches for lora in loras]), *lines])


def _headline(spec: FusionSpec | None, patches: Sequence[LoraPatches]) -> str:
    """All that is read while the report is folded."""
    shared = 0 if spec is None else spec.shared_layers
    left = sum(len(its.refused) + len(its.unmatched) for its in patches)
    return f"{shared} layers routed, {left} keys left out" if patches else "no LoRAs"


def _routed(patches: LoraPatches, held: Attachment) -> Iterator[str]:
    """How many weights of a file are added while sampling, and how many are weight patches."""
    settled = held.spec.settled if held.spec is not None else frozenset()
    alone = sum(target.key.removesuffix(".weight") in settled for target in patches.routed)
    if held.live is not None or not alone:
        yield f"  {len(patches.routed) - alone} weights routed at run time"
    if alone:
        yield f"  {alone} weights merged as ComfyUI does: no LoRA of the other role is there"


def record_report(record: RoutingRecord) -> str:
    """The routing record in a few lines: who owned how much, and which blocks leaned furthest."""
    lines = [f"policy: {record.title} {json.dumps(record.policy)}"]
    lines += [f"{lora['role']}: {lora['name']} at {lora['strength']:g}" for lora in record.loras]
    share = record.subject_share()
    if share is None:
        lines.append("nothing was routed: the policy is constant, or no layer is touched by both LoRAs")
        return "\n".join(lines)
    lines.append(
        f"{len(record.layers)} layers routed over {record.steps} steps; of what both LoRAs add the subject's share is "
        f"{share:.0%}{usual(record.title)}, of the weights {record.subject_weight():.0%}"
    )
    per_layer = record.contributions().nanmean(-1)
    order = per_layer.argsort().tolist()
    for title, indices in (("most style", order[:5]), ("most subject", order[::-1][:5])):
        lines.append(f"{title}:")
        lines += [f"  {record.layers[i].removeprefix('diffusion_model.')}  {per_layer[i]:.0%} subject" for i in indices]
    return "\n".join(lines)


SEEDS = ("seed", "noise_seed")


def run_report(model: ModelPatcher, record: RoutingRecord, prompt: Mapping[str, Any], node: str | None) -> str:
    """A text for the node.

    Args:
        model: the one that sampled.
        record: of the run.
        prompt: the running workflow in API format.
        node: whose ``latent`` input leads to the sampler.
    """
    spec = attachment_of(model).spec
    lines = [f"model: {family_of(model.model)}"]
    if spec is not None:
        lines += _files(model, spec)
    lines.append(record_report(record))
    lines += _owners(record)
    if spec is not None:
        lines += without_effect(spec)
        lines += _cost(model, spec, record)
    seeds = ", ".join(f"{value} ({kind})" for kind, value in seeds_of(prompt, node))
    lines.append(f"seeds: {seeds or 'none found'}")
    lines.append(f"LoRA Conductor {pack_version()}, ComfyUI {comfyui_version}, torch {torch.__version__}")
    left_out = sum(lora.left_out for lora in loras_on(model))
    lines += ["", *verdict(record, spec, left_out, cfg_of(prompt, node))]
    return "\n".join(lines)


def _files(model: ModelPatcher, spec: FusionSpec) -> Iterator[str]:
    for lora in loras_on(model):
        counts = f"{len(lora.deltas)} weights routed, {len(lora.merged)} merged as ComfyUI does"
        refused = f", {lora.left_out} entries not applied (see the loader's report)" if lora.left_out else ""
        yield f"file: {lora.name} as {lora.role}: {counts}{refused}; sha256 {lora.digest[:12]}"
    single = len(spec.layers) - spec.shared_layers
    yield f"layers: {spec.shared_layers} touched by both LoRAs, {single} by one alone"
    left = left_on(model)
    if left:
        yield said_of_left(left)
        yield from listed(left)


def _owners(record: RoutingRecord) -> Iterator[str]:
    """Subject's mean share of what is added in each block."""
    share = record.contributions()
    blocks: dict[str, list[int]] = {}
    for i, layer in enumerate(record.layers):
        blocks.setdefault(block_of(layer), []).append(i)
    if blocks:
        yield "subject's share by block:"
    for block, rows in blocks.items():
        mean = float(share[rows].nanmean())
        owner = "subject" if mean > 0.55 else "style" if mean < 0.45 else "both"
        yield f"  {block}  {mean:.0%}  {owner}"


def _cost(model: ModelPatcher, spec: FusionSpec, record: RoutingRecord) -> Iterator[str]:
    deltas = sum(p.numel() * p.element_size() for p in spec.bank.model.state_dict().values())
    kept = (record.scores.numel() + record.weights.numel()) * record.scores.element_size()
    yield f"memory: {deltas / 1e6:.1f} MB of LoRA deltas, {kept / 1e3:.0f} kB of decisions"
    if record.took is not None:
        sampling, fusing = record.took
        # A GPU works on while the host's clock stops: its share cannot be told without slowing it down.
        on_cpu = f", scoring and fusing {fusing:.2f} s of it" if model.load_device.type == "cpu" else ""
        yield f"time: sampling took {sampling:.2f} s{on_cpu}"


def seeds_of(prompt: Mapping[str, Any], node: str | None) -> list[tuple[str, int]]:
    """(node type, seed) of all nodes that a node's latent comes from, nearest first."""
    steps = [(prompt[source]["class_type"], inputs_of(prompt, source)) for source in sources(prompt, node, "latent")]
    return [(kind, inputs[k]) for kind, inputs in steps for k in SEEDS if isinstance(inputs.get(k), int)]
