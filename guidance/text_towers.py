"""The text half of CLIP-type models: prompts as the picture half's embeddings see them. Nothing is downloaded.

The cosine of a prompt's and a picture's embedding is the CLIP score (Radford et al., arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .towers import EncoderFile, EncoderFileError, check_weights, load_transformers, not_installed, open_clip_config

# Of each, one is enough for transformers to build a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
CLIP_VOCABULARY = 49408  # of the byte pairs that all of OpenAI's and most of open_clip's models share


@dataclass(frozen=True)
class TokenizerFolders:
    """Where tokenizer files may lie: beside the checkpoint, and, for CLIP's own byte pairs, anywhere on the machine."""

    beside: Path | None = None
    clip: Path | None = None


@dataclass(frozen=True)
class TextTower:
    """A text network with its tokenizer. forward: token ids [1, N] -> [1, D]. tokenize: a prompt -> ids, cut to what
    the network can read (77 tokens in CLIP)."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    tokenize: Callable[[str], torch.Tensor]

    def embed(self, prompt: str) -> torch.Tensor:
        """The prompt's embedding [1, D], fp32, comparable with the same file's embeddings of pictures."""
        with torch.no_grad():
            return self.forward(self.tokenize(prompt)).float()


def has_text(library: str, weights: Iterable[str]) -> bool:
    """Whether a checkpoint of that library with these keys holds a text half."""
    prefixes = {"open_clip": ("transformer.", "text."), "transformers": ("text_model.",)}.get(library)
    return prefixes is not None and any(key.removeprefix("module.").startswith(prefixes) for key in weights)


def build_open_clip_text(file: EncoderFile, folders: TokenizerFolders) -> TextTower:
    """The text tower of an open_clip model; `file` as for `build_open_clip`, with "text_cfg" in its config."""
    config = open_clip_config(file)
    import open_clip

    text = dict(config.get("text_cfg") or {})
    if text.get("hf_model_name"):
        raise EncoderFileError(
            f"{file.name}: open_clip takes the text half of this model from {text['hf_model_name']}, which would have "
            "to be downloaded. Use a model with a text half of its own, such as ViT-B-32."
        )
    # The visual tower is thrown away, so the smallest possible one is asked for.
    vision = {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
    model.visual = torch.nn.Identity()
    del model.logit_scale
    weights = {key.removeprefix("module."): value for key, value in file.weights.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith("visual.")}
    # OpenAI's own files carry their sizes as tensors; the logits' scale and bias belong to the loss of training.
    others = ("logit_", "attn_mask", "input_resolution", "context_length", "vocab_size")
    check_weights(model, weights, file.name, f"open_clip {file.model_name or 'text tower'}", ignored_prefixes=others)
    model.float().eval().requires_grad_(False)
    return TextTower(model.encode_text, _open_clip_tokenizer(file, text, folders))


def _open_clip_tokenizer(
    file: EncoderFile, text: dict[str, Any], folders: TokenizerFolders
) -> Callable[[str], torch.Tensor]:
    from open_clip import tokenizer

    settings = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        if text.get("vocab_size", CLIP_VOCABULARY) < CLIP_VOCABULARY:
            raise EncoderFileError(
                f"{file.name}: its text half knows {text['vocab_size']} words only, for which there is no tokenizer. "
                "Use a model with CLIP's own vocabulary."
            )
        return tokenizer.SimpleTokenizer(context_length=length, **settings)
    folder = _tokenizer_folder(file, folders, clip=False)
    if text.get("tokenizer_mode"):
        settings["tokenizer_mode"] = text["tokenizer_mode"]
    try:
        return tokenizer.HFTokenizer(str(folder), context_length=length, **settings)
    except Exception as error:  # whatever the files' reader raises
        raise _bad_tokenizer(file, folder, error) from error


def build_transformers_text(file: EncoderFile, folders: TokenizerFolders) -> TextTower:
    """The text half of a transformers CLIP or SigLIP model. config: the model's `config.json`."""
    try:
        import transformers
    except ImportError as error:
        raise not_installed("transformers", file.name, error) from error

    def half(kind: str, parsed: Any) -> tuple[Any, Any]:
        text = getattr(parsed, "text_config", None)
        if text is None or not kind.startswith(("clip", "siglip")):
            raise EncoderFileError(f"{file.name}: {kind} models read no text. Use a CLIP or SigLIP model.")
        if kind.startswith("siglip"):
            return text, transformers.SiglipTextModel
        text.projection_dim = parsed.projection_dim
        return text, transformers.CLIPTextModelWithProjection

    weights = {key: value for key, value in file.weights.items() if key.startswith(("text_model.", "text_projection."))}
    kind, text, model = load_transformers(file, half, weights)
    model.float().eval().requires_grad_(False)
    own_pairs = kind.startswith("clip") and text.vocab_size == CLIP_VOCABULARY
    folder = _tokenizer_folder(file, folders, own_pairs)
    try:
        reader = transformers.CLIPTokenizer if folder == folders.clip else transformers.AutoTokenizer
        tokenizer = reader.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever the files' reader raises
        raise _bad_tokenizer(file, folder, error) from error

    def tokenize(prompt: str) -> torch.Tensor:
        # SigLIP reads its padding and was trained with it; CLIP stops at the end of the text.
        padding = "max_length" if kind.startswith("siglip") else False
        length = text.max_position_embeddings
        return tokenizer(prompt, padding=padding, max_length=length, truncation=True, return_tensors="pt")["input_ids"]

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        outputs = model(input_ids=tokens)
        return outputs.pooler_output if kind.startswith("siglip") else outputs.text_embeds

    return TextTower(forward, tokenize)


BUILDERS: dict[str, Callable[[EncoderFile, TokenizerFolders], TextTower]] = {
    "open_clip": build_open_clip_text,
    "transformers": build_transformers_text,
}


def _tokenizer_folder(file: EncoderFile, folders: TokenizerFolders, clip: bool) -> Path:
    beside = folders.beside
    if beside is not None and any((beside / name).is_file() for name in TOKENIZER_FILES):
        return beside
    if clip and folders.clip is not None:
        return folders.clip
    raise EncoderFileError(
        f"{file.name}: the tokenizer of its text half is missing. Put the model's tokenizer files (tokenizer.json, "
        "tokenizer_config.json) beside it."
    )


def _bad_tokenizer(file: EncoderFile, folder: Path, error: Exception) -> EncoderFileError:
    return EncoderFileError(
        f"{file.name}: the tokenizer files in {folder.name} cannot be read: {error}. Download them again."
    )
