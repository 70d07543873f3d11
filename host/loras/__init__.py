"""A LoRA file as core reads it: choices, files, targets, deltas, and what they are to a model."""

from .about import About, about, together
from .choices import NO_LORA, LoraChoice, choices_of_stack, stack_of
from .deltas import delta_of
from .effects import depends_on_weight, new_shape
from .file import LoraFile, read_lora
from .header import Header, read_header, tags_of
from .kinds import Unroutable
from .on_model import LoraOnModel, forget_all_but, loras_on, remember
from .patches import LoraPatches, model_patches
from .shown import answer_about_files
from .targets import Entry, Target, is_for_text, refuse_unfit, resolve

__all__ = [
    "About",
    "Header",
    "about",
    "answer_about_files",
    "read_header",
    "tags_of",
    "together",
    "Entry",
    "LoraChoice",
    "LoraFile",
    "LoraOnModel",
    "LoraPatches",
    "NO_LORA",
    "Target",
    "Unroutable",
    "choices_of_stack",
    "delta_of",
    "depends_on_weight",
    "forget_all_but",
    "is_for_text",
    "loras_on",
    "model_patches",
    "new_shape",
    "read_lora",
    "refuse_unfit",
    "remember",
    "resolve",
    "stack_of",
]
