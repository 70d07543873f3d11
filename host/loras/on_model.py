"""What is remembered of each LoRA file on a model or a text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...fusion.adapters import Delta
from .targets import Entry, Target

ATTACHMENT = "lora_conductor_loras"


@dataclass(frozen=True)
class LoraOnModel:
    """A LoRA file's share in one model.

    Attributes:
        name, path, digest: of the file.
        role: "subject" or "style".
        strength: as loaded.
        deltas: by target, what is routed. Text encoders have none: core merges all of theirs.
        core_patches: the same deltas, as core's loaders made them.
        prefixes: by routed target, the file's own key prefix for it.
        merged: by target that core merges, the file's entry.
        left_out: how many of its entries could not be applied.
        behind: by weight, how many patches of others it is loaded behind; 0 where there were none.
    """

    name: str
    path: str
    digest: str
    role: str
    strength: float
    deltas: dict[Target, Delta] = field(default_factory=dict, repr=False, compare=False)
    core_patches: dict[Target, Any] = field(default_factory=dict, repr=False, compare=False)
    prefixes: dict[Target, str] = field(default_factory=dict, repr=False, compare=False)
    merged: dict[Target, Entry] = field(default_factory=dict, repr=False, compare=False)
    left_out: int = 0
    behind: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    def header(self) -> dict[str, Any]:
        """What records, plans and baked files say of it."""
        return {"name": self.name, "role": self.role, "strength": self.strength, "sha256": self.digest}


def loras_on(model: ModelPatcher) -> tuple[LoraOnModel, ...]:
    """The LoRA files on a model, in the order they were loaded."""
    return model.get_attachment(ATTACHMENT) or ()


def remember(model: ModelPatcher, loras: Iterable[LoraOnModel]) -> None:
    """Add to what the model remembers; its clones keep it."""
    model.set_attachments(ATTACHMENT, (*loras_on(model), *loras))


def forget_all_but(model: ModelPatcher, loras: Iterable[LoraOnModel]) -> None:
    """Have the model remember these alone."""
    model.set_attachments(ATTACHMENT, tuple(loras))
