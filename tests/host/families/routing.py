"""The grid of invariances: family x policy and setting, under what must not change a picture.

Two plain LoRA files on every layer; two steps with classifier-free guidance. A cell's errors are the largest difference
over the output's range, between a batch of two and its members alone, prompts in one call and apart, a run and its
replayed plan; and, of the weights, between before and after a run that was frozen half-way. What ComfyUI's own two
stacked loaders do not keep either is no fault of ours: that is measured beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.nested_tensor
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Paper, Policy
from lora_conductor.fusion.records import loads
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.fusing import fused, plan_of_latent, replaying

from .. import tiny
from .bench import Bench
from .catalogue import FAMILIES
from .family import Family, noise_source

ALLOWED = 1e-4  # of the range: another packing sums in another order
STEPS = 2
SIZE = 0.2  # of the LoRAs

SETTINGS: dict[str, tuple[Policy, Refinement]] = {
    "recommended": (RECOMMENDED, Refinement()),
    "paper": (Paper(), Refinement()),
    "kl_soft": (KLSoft(), Refinement()),
    "head": (KLSoft(), Refinement(granularity="head")),
    "token": (KLSoft(), Refinement(granularity="token", blur=1.0)),
    "all": (KLSoft(), Refinement(group_attention=True, layer_prior=1.0, cap=1.0, even_out=1.0, smoothing=0.5)),
    "freeze": (RECOMMENDED, Refinement(freeze_after=1, emphasis=1.0)),
}
KINDS = ("batch", "packed", "replay", "restored")


@dataclass(frozen=True)
class Cell:
    """Errors by kind; None where ComfyUI's own loaders do not keep it either, or nothing is there to compare."""

    family: str
    setting: str
    errors: dict[str, float | None]
    moved: float

    @property
    def worst(self) -> float:
        return max((error for error in self.errors.values() if error is not None), default=0.0)

    @property
    def passed(self) -> bool:
        return self.worst <= ALLOWED


class Routed:
    """One family's model with two LoRAs, and how it is sampled."""

    def __init__(self, family: Family, folder: Path) -> None:
        bench = Bench(family, folder)
        self.family, self.base = family, bench.model()
        # HiDream-O1 keeps keys and values of prompts from call to call, and knows their references by where they lay in
        # memory: another prompt's may lie there now.
        if clear := getattr(self.base.model.diffusion_model, "clear_kv_cache", None):
            self.base.model.diffusion_model.register_forward_pre_hook(lambda *_: clear())
        self.files = [bench.file("lora", "whole", seed=seed, size=SIZE) for seed in (1, 2)]
        self.batches = family.batch == 1 and not isinstance(family.latent[0], tuple)
        core = tiny.core_stacked(self.base, *((path, 1.0) for path in self.files if path is not None))
        self.apart = False
        try:
            self.sample(self.base)
        except RuntimeError:  # core's HunyuanVideo takes the mask of one prompt alone
            self.apart, self.batches = True, False
        self.moved = tiny.relative(self.sample(self.base), self.sample(core))
        self.control = {"batch": self.batch_error(core), "packed": self.packed_error(core)}

    def fused(self, policy: Policy, refinement: Refinement) -> ModelPatcher:
        subject, style = self.files
        assert subject is not None and style is not None
        return fused(self.base, subject, style, policy, refinement)

    def noise(self, batch: int) -> Any:
        normal = noise_source(self.family.seed)
        shapes = self.family.latent if isinstance(self.family.latent[0], tuple) else (self.family.latent,)
        noises = [normal(max(batch, self.family.batch), *shape) for shape in shapes]
        return noises[0] if len(noises) == 1 else comfy.nested_tensor.NestedTensor(noises)

    def sample(self, model: ModelPatcher, noise: Any = None) -> Tensor:
        """Guided steps; a latent of several parts is joined to one row."""
        samples = self.samples(model, noise)
        return samples if isinstance(samples, Tensor) else torch.cat([part.flatten(1) for part in samples.unbind()], 1)

    def samples(self, model: ModelPatcher, noise: Any = None) -> Any:
        noise = self.noise(1) if noise is None else noise
        normal = noise_source(self.family.seed + 100)
        prompts = [[[normal(1, *self.family.context), self.family.conditioning(normal)]] for _ in range(2)]
        with torch.inference_mode(), _one_prompt_a_call(model) if self.apart else nullcontext():
            return comfy.sample.sample(
                model, noise, STEPS, 2.5, "euler", "simple", *prompts, noise * 0, disable_pbar=True, seed=1
            )

    def batch_error(self, model: ModelPatcher) -> float | None:
        if not self.batches:
            return None
        noise = self.noise(2)
        apart = torch.cat([self.sample(model, noise[i : i + 1]) for i in range(2)])
        return tiny.relative(self.sample(model, noise), apart)

    def packed_error(self, model: ModelPatcher) -> float | None:
        if self.apart:
            return None
        together = self.sample(model)
        with _one_prompt_a_call(model):
            return tiny.relative(self.sample(model), together)

    def measure(self, name: str) -> Cell:
        policy, refinement = SETTINGS[name]
        model = self.fused(policy, refinement)
        self.sample(self.base)  # core takes off what an earlier model had patched
        before = {key: value.clone() for key, value in self.base.model.state_dict().items()}
        made = self.samples(model)
        plan = loads(plan_of_latent(model, made).dumps())
        flat = made if isinstance(made, Tensor) else torch.cat([part.flatten(1) for part in made.unbind()], 1)
        again = self.sample(replaying(self.fused(policy, refinement), plan))
        self.sample(self.base)  # as it takes off what it merges of ours
        after = self.base.model.state_dict()
        errors = {
            "batch": self.batch_error(model),
            "packed": self.packed_error(model),
            "replay": tiny.relative(again, flat),
            "restored": max(float((after[key] - value).abs().max()) for key, value in before.items() if value.numel()),
        }
        for kind, error in self.control.items():
            if error is None or error > ALLOWED / 10:
                errors[kind] = None
        if refinement.granularity == "token":
            errors["replay"] = None  # a plan keeps the mean over tokens
        if refinement.freeze_after:
            errors["batch"] = None  # frozen weights are the whole batch's
        return Cell(self.family.model, name, errors, self.moved)


@contextmanager
def _one_prompt_a_call(model: ModelPatcher) -> Iterator[None]:
    """Core packs prompts by free memory; a model that claims to need all of it is run one prompt at a time."""
    own = model.model.__dict__
    own["memory_required"] = lambda *_, **__: 1e30
    try:
        yield
    finally:
        del own["memory_required"]


def measure_row(name: str, folder: Path) -> list[Cell]:
    """All cells of a family."""
    routed = Routed(FAMILIES[name], folder)
    return [routed.measure(setting) for setting in SETTINGS]
