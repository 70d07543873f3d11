"""Pictures of the benchmarks: each is sampled once, kept, and found again by all that went into it.

A run that was cut goes on where it was; a change of the pack's code, of a setting or of a file makes new pictures.
"""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import inspect
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repo_paths import REPO

from ...guidance_defaults import guidance_defaults
from ..world.files import AUTOENCODER, WORDS
from ..world.small_world import SmallWorld
from . import policies
from .guidance import ENCODER_FILES, guided

PACK = ("fusion", "guidance", "host")
METHODS = sorted(Path(policies.__file__).parent.glob("*.py"))
WORLD_FILES = (AUTOENCODER, WORDS)
Pair = tuple[str, str]
"""(subject, style)"""


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes:
        label: its name there.
        method: as in policies.py, or ``ssr_merge``.
        cfg: scale of the classifier-free guidance; None: the world's.
        guidance: metric guidance, as in guidance.py.
        kind: "ours", "rival", "ablation" or "imbalance".
    """

    label: str
    method: str
    cfg: float | None = None
    guidance: str = "none"
    kind: str = "rival"


@functools.cache
def code_hash() -> str:
    """Of the code that draws: the pack's libraries and the way the small world is sampled, less docstrings."""
    files = [file for room in PACK for file in sorted((REPO / room).rglob("*.py"))] + METHODS
    sources = [file.read_text(encoding="utf-8") for file in files] + [inspect.getsource(SmallWorld)]
    return _hash([_bare(source) for source in sources])


@functools.cache
def file_hash(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _bare(source: str) -> str:
    """A module's syntax without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body.pop(0)
    return ast.dump(tree)


class Store:
    """A file of JSON lines, ``{"key", "method", "cfg", "guidance", "subject", "style", "seed", "png"}``.

    A line that was cut off when the run was is as if it had not been written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, str] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            self._found[record["key"]] = record["png"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def add(self, key: str, picture: Tensor, **what: Any) -> None:
        """Keep a picture ``[3, 64, 64]`` in [0, 1], with 8 bits a channel."""
        array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        with io.BytesIO() as file:
            Image.fromarray(array).save(file, "PNG")
            png = base64.b64encode(file.getvalue()).decode()
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"key": key, **what, "png": png}) + "\n")
        self._found[key] = png

    def picture(self, key: str) -> Tensor:
        """``[3, 64, 64]`` in [0, 1]."""
        with Image.open(io.BytesIO(base64.b64decode(self._found[key]))) as image:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@dataclass
class Runs:
    """Samples what is missing of a table, and hands out its pictures.

    Attributes:
        small: the world.
        store: where pictures are kept.
        steps: of sampling; 0: the world's usual ones.
        make_plan: (guidance text) -> ((subject, style) -> guidance plan); only for entries with guidance.
    """

    small: SmallWorld
    store: Store
    steps: int = 0
    make_plan: Callable[[str], Callable[[str, str], Any]] | None = None
    _files: dict[Pair, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = self.steps or self.small.kind.steps[0]

    @property
    def sampling(self) -> str:
        """How pictures are made, in words."""
        return self.small.kind.sampling(self.steps)

    def cfg(self, entry: Entry) -> float:
        """A row's own, or the world's."""
        return self.small.kind.cfg if entry.cfg is None else entry.cfg

    def key(self, entry: Entry, pair: Pair, seed: int) -> str:
        """What a picture is found by: everything it depends on."""
        if pair not in self._files:
            kind, loras = self.small.kind, zip(("subject", "style"), pair, strict=True)
            world = [self.small.file(name) for name in (kind.model, kind.tokens, *WORLD_FILES)]
            self._files[pair] = [file_hash(path) for path in (*world, *(self.small.lora(*its) for its in loras))]
        scales = self.cfg(entry), self.small.kind.guidance
        setting = [entry.method.replace(" ", ""), *scales, entry.guidance, self.steps, *pair, seed]
        if entry.guidance != "none":
            encoders = [file_hash(path) for path in ENCODER_FILES.values()]
            setting += [guidance_defaults(), encoders]
        return _hash([setting, self._files[pair], code_hash()])

    def missing(self, entry: Entry, pair: Pair, seeds: Iterable[int]) -> list[int]:
        """The seeds whose pictures have to be sampled."""
        return [seed for seed in seeds if self.key(entry, pair, seed) not in self.store]

    def sample(
        self, entries: Sequence[Entry], pairs: Sequence[Pair], seeds: Sequence[int], done: Callable[[int], Any]
    ) -> None:
        """Make every missing picture; ``done`` is told how many at a time."""
        for entry in entries:
            for pair in pairs:
                if seeds_left := self.missing(entry, pair, seeds):
                    latents = self.small.sample(
                        self._model(entry, *pair), *pair, seeds_left, steps=self.steps, cfg=self.cfg(entry)
                    )
                    for seed, picture in zip(seeds_left, self.small.decode(latents), strict=True):
                        what = {"method": entry.method, "cfg": self.cfg(entry), "guidance": entry.guidance}
                        where = {"subject": pair[0], "style": pair[1], "seed": seed}
                        self.store.add(self.key(entry, pair, seed), picture, **what, **where)
                    done(len(seeds_left))

    def pictures(self, entry: Entry, pair: Pair, seeds: Sequence[int]) -> Tensor:
        """``[seeds, 3, 64, 64]`` in [0, 1], all of which have been sampled."""
        return torch.stack([self.store.picture(self.key(entry, pair, seed)) for seed in seeds])

    def _model(self, entry: Entry, subject: str, style: str) -> Any:
        if entry.method == "ssr_merge":
            model = policies.ssr_merged(self.small, subject, style)
        else:
            make = policies.parse_method(entry.method)
            model = make(self.small.model, self.small.lora("subject", subject), self.small.lora("style", style))
        if entry.guidance == "none":
            return model
        assert self.make_plan is not None, "guidance needs reference pictures"
        return guided(model, self.make_plan(entry.guidance)(subject, style), [])
