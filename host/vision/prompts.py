"""Prompts as a CLIP-type encoder reads them, for the CLIP score of a picture and its prompt."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import torch

from ...guidance.encoders import EncoderFileError, TextTower, TokenizerFolders
from ..core import ConductorError

KEPT = 64  # embeddings a reader keeps; each is a few kilobytes
PROMPT = "prompt"


class PromptReader:
    """Embeds prompts by the text half of an encoder's own file.

    One short text for a run of many steps needs no network beside the others in the device's memory: the half is read
    from the file, on the CPU, when a prompt is new, and let go again.
    """

    def __init__(self, load: Callable[[], TextTower]) -> None:
        self._load = load
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def embed(self, prompt: str) -> torch.Tensor:
        """[1, D] fp32 on the CPU. Raises ConductorError naming the file if its text half cannot be used."""
        if prompt not in self._known:
            # Outside inference mode: what it makes is compared with embeddings that have gradients.
            with torch.inference_mode(False):
                try:
                    self._known[prompt] = self._load().embed(prompt)
                except (EncoderFileError, ImportError) as error:
                    raise ConductorError(str(error)) from error
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(prompt)
        return self._known[prompt]


def reads_text(source: Any) -> bool:
    """Whether an encoder object given to a node can be asked for a prompt's embedding."""
    return getattr(source, "prompts", None) is not None


def embed_prompt(source: Any, prompt: str, input_name: str, off: str) -> torch.Tensor:
    """The prompt's embedding [1, D] by the encoder of an input.

    off: what to do to go without, for the message. Raises ConductorError if the encoder reads no text.
    """
    if not reads_text(source):
        raise ConductorError(
            f"{input_name}: this encoder reads no prompts: core's CLIP Vision models and many files hold the half for "
            f"pictures only. Load a whole CLIP or SigLIP model with Metric Encoder Loader, or {off}."
        )
    return source.prompts.embed(prompt)


def tokenizer_folders(file: Path) -> TokenizerFolders:
    """Beside the encoder's file, and the copy of CLIP's own tokenizer that ComfyUI carries."""
    return TokenizerFolders(file.parent, Path(inspect.getfile(comfy.sd1_clip)).parent / "sd1_tokenizer")
