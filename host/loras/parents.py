"""What is remembered of the LoRA files on a model or a text encoder, to write a file of the same kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from comfy.model_patcher import ModelPatcher

from .targets import Entry, Target

ATTACHMENT = "lora_conductor_parents"


@dataclass(frozen=True)
class Parent:
    """A LoRA file's share in one model.

    Attributes:
        name, path, digest: of the file.
        role: "subject" or "style".
        strength: as loaded.
        prefixes: by target that is routed, the file's own key prefix for it.
        merged: by target that core merges, the file's entry.
        left_out: how many of its entries could not be applied.
    """

    name: str
    path: str
    digest: str
    role: str
    strength: float
    prefixes: dict[Target, str] = field(default_factory=dict, repr=False, compare=False)
    merged: dict[Target, Entry] = field(default_factory=dict, repr=False, compare=False)
    left_out: int = 0

    def header(self) -> dict[str, object]:
        return {"name": self.name, "role": self.role, "strength": self.strength, "sha256": self.digest}


def parents_of(model: ModelPatcher) -> tuple[Parent, ...]:
    """The LoRA files on a model, in the order they were loaded."""
    return model.get_attachment(ATTACHMENT) or ()


def remember(model: ModelPatcher, parents: Iterable[Parent]) -> None:
    """Add to what the model remembers; its clones keep it."""
    model.set_attachments(ATTACHMENT, (*parents_of(model), *parents))
