"""A run in words: what was on the model, who owned which blocks, what it cost, and how to make it again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__ as comfyui_version

from ..fusion.record import RoutingRecord
from .fusion_patch import FusionSpec, attachment_of
from .map_picture import block_of
from .parents import parents_of
from .report import record_report

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
    lines = [f"model: {type(model.model).__name__}"]
    if spec is not None:
        lines += _files(model, spec)
    lines.append(record_report(record))
    lines += _owners(record)
    if spec is not None:
        lines += _cost(model, spec, record)
    seeds = ", ".join(f"{value} ({kind})" for kind, value in seeds_of(prompt, node))
    lines.append(f"seeds: {seeds or 'none found'}")
    lines.append(f"LoRA Conductor {pack_version()}, ComfyUI {comfyui_version}, torch {torch.__version__}")
    return "\n".join(lines)


def _files(model: ModelPatcher, spec: FusionSpec) -> Iterator[str]:
    for parent in parents_of(model):
        counts = f"{len(parent.prefixes)} weights routed, {len(parent.merged)} merged as ComfyUI does"
        refused = f", {parent.left_out} entries not applied (see the loader's report)" if parent.left_out else ""
        yield f"file: {parent.name} as {parent.role}: {counts}{refused}; sha256 {parent.digest[:12]}"
    single = len(spec.layers) - spec.shared_layers
    yield f"layers: {spec.shared_layers} touched by both LoRAs, {single} by one alone"


def _owners(record: RoutingRecord) -> Iterator[str]:
    """Subject's mean share of each block."""
    share = record.weights[0] / record.weights.sum(0).clamp_min(1e-12)
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
    found: list[tuple[str, int]] = []
    ways = [prompt.get(node or "", {}).get("inputs", {}).get("latent")]
    seen: set[str] = set()
    while ways:
        source = ways.pop(0)
        if not isinstance(source, list) or source[0] in seen or source[0] not in prompt:
            continue
        seen.add(source[0])
        step = prompt[source[0]]
        found += [(step["class_type"], step["inputs"][k]) for k in SEEDS if isinstance(step["inputs"].get(k), int)]
        ways += step["inputs"].values()
    return found


def pack_version() -> str:
    """From pyproject.toml, which is part of the installed pack."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert match is not None
    return match[1]
