"""What every library's encoders share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..preprocess import Preprocess

StateDict = Mapping[str, torch.Tensor]


class EncoderFileError(ValueError):
    """An encoder file that cannot be used. The message names the file, what is wrong and what to do.

    It is one line of printable text, whatever a file or a library put into it.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(sign if sign.isprintable() else " " for sign in message[:2000]))


@dataclass
class Tower:
    """A vision network with its weights. module: pixel values [B, 3, h, w] -> [B, D].

    captioned: whether it was trained with texts, as CLIP and its like are and DINO is not.
    """

    module: torch.nn.Module
    preprocess: Preprocess
    captioned: bool = False


@dataclass(frozen=True)
class EncoderFile:
    """The contents of a checkpoint: its weights, its name for messages, and what is known of the architecture.

    model_name: the architecture's name in the library, "" if unknown. config: the library's description of the
    architecture, None if unknown; see the builders.
    """

    weights: StateDict
    name: str
    model_name: str = ""
    config: Mapping[str, Any] | None = None


def unknown_name(library: str, file: EncoderFile, examples: str) -> EncoderFileError:
    name = file.model_name
    problem = f"{library} has no model named {name!r}" if name else "the file does not say its architecture"
    return EncoderFileError(
        f"{file.name}: {problem}. Set model_name to {library}'s name for it, for example {examples}."
    )


def check_weights(
    module: torch.nn.Module, weights: StateDict, file_name: str, model: str, ignored_prefixes: tuple[str, ...] = ()
) -> None:
    """Load a file's weights into the module; raises EncoderFileError naming the file unless they fit exactly."""
    own = module.state_dict()
    unexpected = [key for key in weights if key not in own and not key.startswith(ignored_prefixes)]
    check_keys([key for key in own if key not in weights], unexpected, file_name, model)
    wrong = [key for key, value in own.items() if weights[key].shape != value.shape]
    if wrong:
        key = wrong[0]
        raise EncoderFileError(
            f"{file_name} does not fit {model}: {key} is {list(weights[key].shape)} in the file and "
            f"{list(own[key].shape)} in the model ({len(wrong)} such weights). Check model_name."
        )
    module.load_state_dict({key: weights[key] for key in own})


def check_keys(missing: list[str], unexpected: list[str], file_name: str, model: str) -> None:
    if missing or unexpected:
        raise EncoderFileError(
            f"{file_name} does not hold the weights of {model}: missing are {_few(missing)}; not part of it are "
            f"{_few(unexpected)}. Check library and model_name, or use another file."
        )


def _few(keys: list[str]) -> str:
    if not keys:
        return "none"
    return ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, (int, float)) else (int(size[0]), int(size[1]))


CLIP_VOCABULARY = 49408  # of the byte pairs that all of OpenAI's and most of open_clip's models share


@dataclass(frozen=True)
class TokenizerFolders:
    """Where tokenizer files may lie: beside the checkpoint, and, for CLIP's own byte pairs, anywhere on the machine."""

    beside: Path | None = None
    clip: Path | None = None


@dataclass(frozen=True)
class TextTower:
    """A text network with its tokenizer. forward: token ids [1, N] -> [1, D]. tokenize: a prompt -> ids, cut to what
    the network can read (77 tokens in CLIP). name: of its file, for messages."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    tokenize: Callable[[str], torch.Tensor]
    name: str = "encoder file"

    def embed(self, prompt: str) -> torch.Tensor:
        """The prompt's embedding [1, D], fp32, comparable with the same file's embeddings of pictures.

        Raises EncoderFileError if the network cannot read what the tokenizer makes of the prompt.
        """
        try:
            with torch.no_grad():
                return self.forward(self.tokenize(prompt)).float()
        except Exception as error:  # whatever a tokenizer or network raises that was not made for the other
            raise EncoderFileError(
                f"{self.name}: its text half cannot read the prompt ({type(error).__name__}: {str(error)[:300]}). Its "
                "tokenizer files or its description may be another model's."
            ) from error


@dataclass(frozen=True)
class Library:
    """What there is to know of one library; a row of the table in file.py.

    name: as users choose it, and files that describe themselves. module, package: what is imported, and what pip calls
    it. recognises: (weights, config) -> whether a file seems to be of this library, by its keys or the config.json
    beside it. certainty: a file that several recognise belongs to the surest, of equals to the first; 0 is by names of
    weights that others may use too. build: the tower whose output is the embedding; only called where the module can be
    imported, as are the others. heads: towers of other features, by what those are called. build_text: the text half,
    None if the library reads none; text_prefixes: what its weights begin with. beside: what else a file needs, in
    words, "" if nothing.
    """

    name: str
    module: str
    package: str
    recognises: Callable[[StateDict, Mapping[str, Any] | None], bool]
    build: Callable[[EncoderFile], Tower]
    certainty: int = 0
    heads: Mapping[str, Callable[[EncoderFile], Tower]] = field(default_factory=dict)
    build_text: Callable[[EncoderFile, TokenizerFolders], TextTower] | None = None
    text_prefixes: tuple[str, ...] = ()
    beside: str = ""

    def has_text(self, weights: StateDict) -> bool:
        """Whether a file with these weights holds a text half that can be built."""
        if self.build_text is None:
            return False
        return any(key.removeprefix("module.").startswith(self.text_prefixes) for key in weights)
