"""What a LoRA file, and notes beside it, say of it: its base model, and the words that call what it was trained on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..core import base_called, printable
from .header import Header, read_header, tags_of
from .notes import notes_beside

MOST_WORDS, MOST_OF_A_WORD = 24, 400  # entries, and characters of one
MOST_IN_PROMPT = 5  # words; of whole prompts one
NEARLY_EVERY = 0.9  # caption has a tag that is taken for a trigger word

_PHRASES = ("modelspec.trigger_phrase", "ss_trigger_words", "ss_trigger_word", "trigger_words", "trigger_word")
_BASES = ("modelspec.architecture", "ss_base_model_version", "modelspec.base_model", "ss_sd_model_name")
_NO_ANSWER = re.compile(r"(unknown|other|none|n/?a|custom)?", re.IGNORECASE)
# Of other programs' prompts: they load a LoRA there, and here they would be words.
_TAGS = re.compile(r"<\w+:[^<>]*>")


@dataclass(frozen=True)
class About:
    """What is said of a file; empty where nothing is. All of it can be shown, and is short.

    Attributes:
        base: the base model, in the words of who said it.
        base_from: who did.
        words: trigger words, or whole prompts, one an entry.
        words_from: who named them.
        keys: how many tensors the file's header lists; 0 where that is not known.
        rank: the most frequent of its plain LoRAs; 0 where there are none.
    """

    base: str = ""
    base_from: str = ""
    words: tuple[str, ...] = ()
    words_from: str = ""
    keys: int = 0
    rank: int = 0

    @property
    def means(self) -> str:
        """The base model by its one name (:func:`..core.base_called`); empty where nobody knows."""
        return base_called(self.base)

    @property
    def for_prompt(self) -> str:
        """The words as a part of a prompt: several entries that are whole prompts are alternatives, and the first is
        taken."""
        several = any("," in word for word in self.words)
        return ", ".join(self.words[: 1 if several else MOST_IN_PROMPT])


def about(path: str) -> About:
    """What is said of a file: notes beside it, which people edit, before its own header. Never an error."""
    header, notes = read_header(path), list(notes_beside(path))
    words, words_from = _first(_words(note.words) for note in notes), ""
    if words:
        words_from = next(f"*{note.source}" for note in notes if _words(note.words) == words)
    else:
        words, words_from = _own_words(header.metadata)
    base, base_from = "", ""
    for said, source in _bases(header, [(note.base, f"*{note.source}") for note in notes]):
        if not base or (not base_called(base) and base_called(said)):
            base, base_from = said, source
    return About(base, base_from, words, words_from, len(header.shapes), _rank(header.shapes))


def together(parts: Iterable[str]) -> str:
    """Words of several files as one part of a prompt, each said once."""
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _first(found: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return next((words for words in found if words), ())


def _bases(header: Header, noted: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Who says what of the base model, the surest first."""
    own = [(header.metadata.get(key, ""), key) for key in _BASES]
    for said, source in (*noted, *own, (_by_shapes(header.shapes), "its keys")):
        line = _line(said)[:100].strip()
        if line and not _NO_ANSWER.fullmatch(line):
            yield line, source


def _line(text: str) -> str:
    """A text in one line, as far as it can be shown; empty where it cannot."""
    line = " ".join(text[: 4 * MOST_OF_A_WORD].split())
    return line if printable(line) == line else ""


def _words(entries: Iterable[str]) -> tuple[str, ...]:
    """Entries as words: in one line, without repetitions, cut at a comma where they are long."""
    found: dict[str, None] = {}
    for entry in entries:
        word = _line(_TAGS.sub("", entry[: 4 * MOST_OF_A_WORD])).strip(" ,;")
        word = re.sub(r",( ?,)+", ",", word)  # around what was left out
        if len(word) > MOST_OF_A_WORD:
            word = word[:MOST_OF_A_WORD].rpartition(",")[0].strip(" ,;")
        if word and "://" not in word:
            found.setdefault(word)
        if len(found) == MOST_WORDS:
            break
    return tuple(found)


def _own_words(metadata: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """What a header names, and where."""
    for key in _PHRASES:
        words = _words(_phrases(metadata.get(key, "")))
        if words:
            return words, key
    words = _words(_frequent(metadata))[:MOST_IN_PROMPT]
    return words, "tags of nearly all its captions" if words else ""


def _phrases(text: str) -> list[str]:
    """A phrase, or a list of phrases written as JSON."""
    if text.lstrip().startswith("["):
        try:
            said = json.loads(text[: 1 << 16])
        except (ValueError, RecursionError):
            return []
        return [entry for entry in said if isinstance(entry, str)]
    return [text]


def _frequent(metadata: dict[str, str]) -> list[str]:
    """Tags that nearly every caption has; where folders have none in common, that nearly every one of a folder has.

    How many captions there are stands in ``ss_dataset_dirs``; without it, no tag is in more than the commonest one.
    """
    folders = tags_of(metadata)
    counted = {folder: table.get("img_count") for folder, table in tags_of(metadata, "ss_dataset_dirs").items()}
    sizes = {folder: counted.get(folder) or max(table.values(), default=0) for folder, table in folders.items()}
    over_all: Counter[str] = Counter()
    for table in folders.values():
        over_all.update({_unweighted(tag): count for tag, count in table.items()})
    found = _above(over_all, sum(sizes.values()))
    if found or len(folders) < 2:
        return found
    return [tag for folder, table in folders.items() for tag in map(_unweighted, _above(table, sizes[folder]))]


def _above(counts: Mapping[str, float], captions: float) -> list[str]:
    found = [tag for tag, count in counts.items() if count > 0 and count >= NEARLY_EVERY * captions]
    return sorted(found, key=lambda tag: -counts[tag])  # those of one count stay in the captions' order


def _unweighted(tag: str) -> str:
    """A tag of a caption as a prompt has it, where brackets mean weights unless they are escaped."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", tag.strip())


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int:
    ends = ("lora_down.weight", "lora_A.weight")
    ranks = Counter(shape[0] for key, shape in shapes.items() if len(shape) > 1 and key.endswith(ends))
    return ranks.most_common(1)[0][0] if ranks else 0


def _by_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The base model whose layers a file's keys name, as far as names and widths tell it from all others."""
    found: dict[str, int] = {}
    singles = -1
    for key, shape in shapes.items():
        name = key.lower()
        if len(shape) < 2 or not re.search(r"(down|lora_a)\.weight$", name):
            continue
        if re.search(r"attn2[._](processor[._])?to_k", name):
            found |= {"attn2": shape[1]}
        elif re.search(r"(^|[._])transformer_blocks[._]\d+[._]img_mlp", name):
            found |= {"qwen": shape[1]}
        elif re.search(r"[._]layers[._]\d+[._]attention[._](qkv|to_q)", name):
            found |= {"lumina": shape[1]}
        elif re.search(r"(^|[._])blocks[._]\d+[._]cross_attn[._][qkvo]\b", name):
            found |= {"wan": shape[1]}
        elif match := re.search(r"single_(transformer_)?blocks[._](\d+)[._](linear1|attn)", name):
            found |= {"single": shape[1]}
            singles = max(singles, int(match[2][:4]))
    if "attn2" in found:
        return {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}.get(found["attn2"], "")
    if "qwen" in found:
        return "Qwen-Image"
    if "lumina" in found:
        return {3840: "Z-Image", 2304: "Lumina 2"}.get(found["lumina"], "")
    if "wan" in found:
        return "Wan"
    # Others have blocks of those names, fewer or more of them, or wider.
    return "FLUX.1" if found.get("single") == 3072 and 25 <= singles <= 37 else ""
