"""What a cell of the table is: one way to sample, with our LoRAs fused at run time and with core's stacked loaders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import comfy.sample
import nodes
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.fusing import fused

from .. import tiny
from ..families.catalogue import FAMILIES
from ..families.family import build, noise_source

EXACT = 1e-4  # of the output's range; as in tests/host/fusing
MOVED = 1e-3  # of the range: less, and a cell shows nothing
STEPS, CFG, SEED = 4, 2.0, 3

Put = Callable[[ModelPatcher], ModelPatcher]


def none(model: ModelPatcher) -> ModelPatcher:
    """The model as it is: puts no LoRAs on it, or patches nothing."""
    return model


class World:
    """A small model of a family, twice, so that neither loads over the other; two LoRA files for all its layers."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self._folder = FAMILIES[family], folder
        self._ready: dict[tuple[int, str], ModelPatcher] = {}

    @cached_property
    def models(self) -> tuple[ModelPatcher, ModelPatcher]:
        return build(self.family), build(self.family)

    @cached_property
    def files(self) -> list[tuple[Path, float]]:
        shapes = tiny.layer_shapes(self.models[0])
        paths = [self._folder / f"{self.family.model}-{seed}.safetensors" for seed in (1, 2)]
        made = [tiny.make_lora(path, shapes, seed=seed, size=0.2) for seed, path in enumerate(paths, 1)]
        return list(zip(made, (0.8, -0.6), strict=True))

    def ours(self, model: ModelPatcher) -> ModelPatcher:
        """The model with both LoRAs, fused at run time by the plain sum."""
        return self._kept("ours", model, lambda: fused(model, *self.files, Sum(), always_live=True))

    def core(self, model: ModelPatcher) -> ModelPatcher:
        """The model with both LoRAs by core's stacked loaders."""
        return self._kept("core", model, lambda: tiny.core_stacked(model, *self.files))

    def _kept(self, name: str, model: ModelPatcher, make: Callable[[], ModelPatcher]) -> ModelPatcher:
        """Made once of the models as they are, which most ways use."""
        if not any(model is own for own in self.models):
            return make()
        key = (id(model), name)
        if key not in self._ready:
            self._ready[key] = make()
        return self._ready[key]

    def conditioning(self, seed: int, tokens: int = 0) -> list[Any]:
        normal = noise_source(seed)
        length, width = self.family.context
        return [[normal(1, tokens or length, width), self.family.conditioning(normal)]]

    def latent(self, batch: int = 0, size: int = 0) -> Tensor:
        """Zeros; of the family's size, or of another one."""
        shape = self.family.latent
        assert isinstance(shape[0], int)
        space = [size] * (len(shape) - 1) if size else shape[1:]
        return torch.zeros(batch or self.family.batch, shape[0], *space)

    def sample(self, model: ModelPatcher, **changes: Any) -> Tensor:
        """Core's ``comfy.sample.sample``; anything it takes can be changed."""
        latent = changes.pop("latent_image", None)
        latent = self.latent() if latent is None else latent
        noise = changes.pop("noise", None)
        how = {
            "steps": STEPS,
            "cfg": CFG,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": self.conditioning(1),
            "negative": self.conditioning(2),
            "latent_image": latent,
            "disable_pbar": True,
            "seed": SEED,
            **changes,
        }
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent, SEED) if noise is None else noise
            return comfy.sample.sample(model, noise, **how)


@dataclass(frozen=True)
class Way:
    """A way to sample.

    Attributes:
        section, row, column: where it stands in the table.
        run: samples in a world, with a model and what puts LoRAs on it, before or after whatever the way does.
        family: of the model.
        differs: why it may differ from core, where it does.
    """

    section: str
    row: str
    column: str
    run: Callable[[World, ModelPatcher, Put], Tensor]
    family: str = "SD15"
    differs: str = ""


@dataclass(frozen=True)
class Cell:
    """What was measured: our error, and how far the LoRAs move the output, of its range; or what was said instead."""

    way: Way
    error: float = 0.0
    moved: float = 0.0
    failure: str = ""
    core_refuses: str = ""

    @property
    def passed(self) -> bool:
        if self.core_refuses or self.way.differs:
            return True
        return not self.failure and self.error <= EXACT and self.moved > MOVED


def measure(way: Way, world: World, *, moves: bool = True) -> Cell:
    """Ours against core's merge, in that way; moves: whether it is asked how far the LoRAs move the output."""
    one, other = world.models
    try:
        expected = way.run(world, other, world.core)
    except Exception as error:
        return Cell(way, core_refuses=_words(error))
    try:
        got = way.run(world, one, world.ours)
    except Exception as error:
        return Cell(way, failure=_words(error))
    moved = tiny.relative(way.run(world, other, none), expected) if moves else 1.0
    return Cell(way, tiny.relative(got, expected), moved)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


@cache
def core_nodes() -> dict[str, Any]:
    """Every node of core's by its class type; importing them takes some seconds."""
    asyncio.run(nodes.init_builtin_extra_nodes())
    return dict(nodes.NODE_CLASS_MAPPINGS)


def inputs_of(kind: str) -> dict[str, Any]:
    """The inputs of a core node, with their types and options."""
    given = core_nodes()[kind].INPUT_TYPES()
    return {name: spec for part in ("required", "optional") for name, spec in (given.get(part) or {}).items()}


def called(kind: str, **inputs: Any) -> tuple[Any, ...]:
    """What a core node gives for these inputs, and for the others' defaults."""
    cls = core_nodes()[kind]
    for name, spec in (cls.INPUT_TYPES().get("required") or {}).items():
        options = spec[1] if len(spec) > 1 else {}
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        if name not in inputs and (options.get("default") is not None or choices):
            inputs[name] = options["default"] if options.get("default") is not None else choices[0]
    with torch.inference_mode():
        given = cls.execute(**inputs) if hasattr(cls, "execute") else getattr(cls(), cls.FUNCTION)(**inputs)
    return given if isinstance(given, tuple) else given.args
