"""The same picture under several policies and seeds, scored and side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..fusion.plan import Plan
from ..fusion.policies import POLICIES, RECOMMENDED, Policy
from ..guidance.losses import cosine_similarity
from .encoders import open_encoder
from .errors import ConductorError
from .fusion_patch import attachment_of, set_policy
from .plans import plan_of_latent
from .routing import live_of, record_of_latent


@dataclass(frozen=True)
class Cell:
    """One picture of the grid.

    Attributes:
        policy, seed: that made it.
        image: ``[height, width, 3]`` between 0 and 1.
        scores: cosine similarity to the reference of "subject" and of "style", as far as there are references.
        share: the subject's mean share; None where nothing was decided while sampling.
        plan: of the run.
    """

    policy: str
    seed: int
    image: Tensor
    scores: dict[str, float]
    share: float | None
    plan: Plan

    @property
    def score(self) -> float | None:
        """Mean of the similarities."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


def policies_named(text: str) -> dict[str, Policy]:
    """Policies by name, from a list separated by commas or lines.

    Raises:
        ConductorError: an unknown name, or none.
    """
    names = [name for part in text.splitlines() for name in map(str.strip, part.split(",")) if name]
    known: dict[str, Policy] = {"recommended": RECOMMENDED, **{name: make() for name, make in POLICIES.items()}}
    if not names:
        raise ConductorError(f"policies: the list is empty. Name some of: {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise ConductorError(f"policies: there is no '{name}' to compare. Choose from: {', '.join(known)}.")
    return {name: known[name] for name in names}


def compare(
    model: ModelPatcher,
    policies: dict[str, Policy],
    seeds: Iterable[int],
    sampling: dict[str, Any],
    vae: Any,
    judge: Judge,
) -> list[Cell]:
    """All pictures, policy by policy; the model's other router settings apply to each.

    Args:
        model: with LoRAs of ours.
        sampling: arguments of core's ``common_ksampler`` besides model and seed.
        vae: decodes the pictures.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or a policy cannot fuse these.
    """
    from nodes import common_ksampler  # ComfyUI's; its import loads every core node, so not at our import

    live_of(model)
    refinement = attachment_of(model).refinement
    cells, seeds = [], list(seeds)
    for name, policy in policies.items():
        routed = set_policy(model, policy, refinement)
        for seed in seeds:
            comfy.model_management.throw_exception_if_processing_interrupted()
            (latent,) = common_ksampler(routed, seed, **sampling)
            samples = latent["samples"]
            image = vae.decode(samples)
            image = image.reshape(-1, *image.shape[-3:])[0, ..., :3].float().cpu()
            share = record_of_latent(routed, samples).subject_share()
            cells.append(Cell(name, seed, image, judge.scores(image), share, plan_of_latent(routed, samples)))
    return cells


def best_of(cells: Sequence[Cell]) -> Cell:
    """The cell most like its references; without references, the one that shares most evenly."""

    def key(cell: Cell) -> float:
        if cell.score is not None:
            return cell.score
        return -1.0 if cell.share is None else -abs(cell.share - 0.5)

    return max(cells, key=key)


class Judge:
    """Compares pictures with references: the subject by DINO where there is one, else by CLIP; the style by CLIP.

    Args:
        references: IMAGE by role; None leaves the role out.
        clip_encoder, dino_encoder: CLIP_VISION or METRIC_ENCODER, or None.

    Raises:
        ConductorError: a reference without an encoder that could compare it.
    """

    def __init__(self, references: dict[str, Tensor | None], clip_encoder: Any, dino_encoder: Any) -> None:
        sources = {"subject": (dino_encoder, "dino_encoder"), "style": (clip_encoder, "clip_encoder")}
        if dino_encoder is None:
            sources["subject"] = clip_encoder, "clip_encoder"
        self._references: dict[str, Tensor] = {}
        self._sources: dict[str, tuple[Any, str]] = {}
        for role, picture in references.items():
            if picture is None:
                continue
            if sources[role][0] is None:
                raise ConductorError(
                    f"{role}_image: there is no encoder to compare it by. Connect clip_encoder, or leave {role}_image "
                    "empty."
                )
            self._references[role], self._sources[role] = picture, sources[role]

    def scores(self, image: Tensor) -> dict[str, float]:
        """By role, the similarity of a picture ``[height, width, 3]`` to its references."""
        return {
            role: float(cosine_similarity(self._embedded(role, image[None]), self._embedded(role, reference)).mean())
            for role, reference in self._references.items()
        }

    def _embedded(self, role: str, images: Tensor) -> Tensor:
        encoder = open_encoder(*self._sources[role])
        try:
            # Weights moved to the device here stay fit for gradients.
            with torch.inference_mode(False), torch.no_grad():
                comfy.model_management.load_models_gpu([encoder.patcher])
                return encoder.embed(images.clone()[..., :3].movedim(-1, 1))
        finally:
            encoder.close()
