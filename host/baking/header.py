"""The header of a baked file: what it was made of, for people, for us, and for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy.cli_args import args

from ..core import pack_version, printable
from ..loras import LoraOnModel, read_header, tags_of
from .file import BakedTensors

# What other programs read to know which models a LoRA is for: kept where all parents say the same.
FAMILY_KEYS = (
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
    "ss_base_model_version",
    "ss_clip_skip",
    "ss_v2",
)
TRIGGER, TAGS = "modelspec.trigger_phrase", "ss_tag_frequency"
BEGINNINGS = ("modelspec.", "ss_", "sshs_")
MOST_OF_A_VALUE = 1 << 20  # characters; what trainers write of all images of a data set can be as much
TAGS_SHOWN = 5


def metadata_of(
    baked: BakedTensors,
    parents: Sequence[LoraOnModel],
    texts: Sequence[LoraOnModel],
    fusion: dict[str, Any],
    prompt: Any = None,
    extra: Any = None,
) -> dict[str, str]:
    """The header of a baked file.

    Args:
        baked: the tensors.
        parents: the LoRA files that went into its part for the diffusion model.
        texts: those that went into its part for the text encoder.
        fusion: policy and step, as JSON.
        prompt, extra: the workflow, as ComfyUI's saving nodes get it. Left out under ``--disable-metadata``.
    """
    headers = headers_of((*parents, *texts))
    rank = max(baked.ranks.values(), default=0)
    lost = list(baked.lost.values())
    own = {
        "version": pack_version(),
        "parents": [parent.header() for parent in parents],
        "text_encoder": [parent.header() for parent in texts],
        **fusion,
        "rank": rank,
        "energy_lost_mean": sum(lost) / max(1, len(lost)),
        "energy_lost_max": max(lost, default=0.0),
        "picture_apart": None if baked.apart is None else {"step": baked.apart[0] + 1, "of_range": baked.apart[1]},
        "averaged_away": {} if baked.losses is None else baked.losses.shares,
        "left_out": baked.left_out,
    }
    said = {name: header for name, header in headers.items() if header}
    metadata = {
        "lora_conductor": json.dumps(own),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": printable(" x ".join(Path(name).stem for name in headers)),
        "modelspec.merged_from": printable(", ".join(headers)),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        **_agreed(list(headers.values())),
        **({"lora_conductor_parents": json.dumps(said)} if said else {}),
    }
    triggers = triggers_of(headers)
    if triggers:
        metadata[TRIGGER] = ", ".join(dict.fromkeys(triggers.values()))
    tags = {
        f"{Path(name).stem}: {folder}": counts for name in headers for folder, counts in tags_of(headers[name]).items()
    }
    if tags:
        metadata[TAGS] = json.dumps(tags)
    if not args.disable_metadata:
        metadata |= {} if prompt is None else {"prompt": json.dumps(prompt)}
        # Core hands on what the page sent, whatever it is; our own entries stay.
        sent = extra if isinstance(extra, dict) else {}
        metadata = {printable(key): json.dumps(value) for key, value in sent.items()} | metadata
    return metadata


def headers_of(parents: Sequence[LoraOnModel]) -> dict[str, dict[str, str]]:
    """By name of the file, what its own header says in the keys of trainers and of the model spec."""
    found: dict[str, dict[str, str]] = {}
    for parent in parents:
        header = read_header(parent.path).metadata if parent.name not in found else found[parent.name]
        found[parent.name] = {
            key: printable(value, MOST_OF_A_VALUE)
            for key, value in header.items()
            if key.startswith(BEGINNINGS) and printable(key) == key
        }
    return found


def triggers_of(headers: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By name of the file, the words that call what it was trained on."""
    return {name: header[TRIGGER].strip() for name, header in headers.items() if header.get(TRIGGER, "").strip()}


def words_of(headers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """For the report: the trigger words of each file, else the tags that were most frequent in its data."""
    lines, triggers = [], triggers_of(headers)
    for name, header in headers.items():
        if name in triggers:
            lines.append(f"trigger words of {name}: {printable(triggers[name])}")
            continue
        counts: dict[str, float] = {}
        for folder in tags_of(header).values():
            for tag, count in folder.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
        most = sorted(counts, key=lambda tag: -counts[tag])[:TAGS_SHOWN]
        if most:
            lines.append(f"{name} names no trigger words; its data most often said: {printable(', '.join(most))}")
    return lines


def _agreed(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all parents' own headers say of the models that they are for."""
    said = {key: {header.get(key) for header in headers} for key in FAMILY_KEYS}
    return {key: value for key, values in said.items() for value in values if len(values) == 1 and value is not None}
