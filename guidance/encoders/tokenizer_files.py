"""Tokenizer files: where they lie, and what they may say.

A tokenizer's settings name classes, files and code; a library asked for a tokenizer follows them. So they are read
here first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import EncoderFile, EncoderFileError, TokenizerFolders
from .description import read_json, shown, words

# Of each, one is enough for transformers to build a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")

_CLASSES = re.compile(
    r"((Albert|Bart|Barthez|Bert|Camembert|CLIP|DebertaV2|DistilBert|Electra|Gemma|GPT2|Llama|MBart|MBart50|MPNet|MT5"
    r"|Nllb|PreTrained|Qwen2|Roberta|Siglip|Siglip2|T5|XLMRoberta)Tokenizer(Fast)?|TokenizersBackend)"
)
# The settings of tokenizer_config.json and special_tokens_map.json in published models.
_SETTINGS = words(
    """add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens backend
    bos_token bos_token_id canonicalize_text chat_template clean_text clean_up_tokenization_spaces cls_token
    do_basic_tokenize do_lower_case do_lowercase_and_remove_accent eos_token eos_token_id errors extra_ids
    extra_special_tokens handle_chinese_chars is_local keep_accents legacy local_files_only lowercase mask_token
    max_len max_length model_input_names model_max_length model_specific_special_tokens name_or_path never_split
    pad_to_multiple_of pad_token pad_token_id pad_token_type_id padding padding_side processor_class
    remove_space return_attention_mask sep_token spaces_between_special_tokens special_tokens_map_file
    split_special_tokens stride strip_accents tokenize_chinese_chars trim_content trim_offsets truncation
    truncation_side truncation_strategy unk_token use_default_system_prompt use_fast wordpieces_prefix"""
)
_EMPTY_ONLY = words("""auto_map merges_file sp_model_kwargs spm_file tokenizer_class tokenizer_file vocab_file""")


def tokenizer_folder(file: EncoderFile, folders: TokenizerFolders, clip: bool) -> Path:
    """The folder with the tokenizer of a file's text half, its settings checked. clip: whether CLIP's own serve.

    Raises EncoderFileError if there is none, or if its settings ask for code or other files.
    """
    beside = folders.beside
    if beside is not None and any((beside / name).is_file() for name in TOKENIZER_FILES):
        _check_settings(file, beside)
        return beside
    if clip and folders.clip is not None:
        return folders.clip
    raise EncoderFileError(
        f"{file.name}: the tokenizer of its text half is missing. Put the model's tokenizer files (tokenizer.json, "
        "tokenizer_config.json) beside it."
    )


def bad_tokenizer(file: EncoderFile, folder: Path, error: Exception) -> EncoderFileError:
    return EncoderFileError(
        f"{file.name}: the tokenizer files in {folder.name} cannot be read: {str(error)[:300]}. Download them again."
    )


def model_config(file: EncoderFile, folder: Path) -> Mapping[str, Any] | None:
    """What the folder's config.json says, None if there is none. Raises EncoderFileError if it is no description."""
    return _read(file, folder / "config.json")


def _check_settings(file: EncoderFile, folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = _read(file, folder / name) or {}
        for key, value in settings.items():
            known = known_class(value) if key == "tokenizer_class" else key in _SETTINGS
            if not known and not (key in _EMPTY_ONLY and not value):
                raise EncoderFileError(
                    f"{file.name}: {name} beside it sets {key[:80]} to {shown(value)}, which could run code or read "
                    "other files. Use the tokenizer files of a model without it."
                )


def known_class(name: Any) -> bool:
    """Whether a tokenizer's class is one of transformers' own for text."""
    return isinstance(name, str) and _CLASSES.fullmatch(name) is not None


def _read(file: EncoderFile, path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    what = f"{file.name}: {path.name} beside it"
    found = read_json(path, what)
    if not isinstance(found, Mapping):
        raise EncoderFileError(f"{what} is not a JSON object. Download it again.")
    return found
