"""A user's own pair, measured: each seed by the model alone, each LoRA alone, the plain stack, and as it is fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...fusion.roles import ROLES
from ...guidance.burn import burn_against
from ...guidance.losses import cosine_similarity
from ..core import ConductorError, SamplerCall, printable, sampled
from ..fusing import FusionSpec, live_of, with_roles_alone
from ..vision import Picture, References, open_encoder, pictures_of
from .grid import first_picture
from .measures import covered
from .score import embeddings
from .unfinished import Unfinished

# Anchors, and what is measured against them; by kind, the roles whose LoRAs core stacks, None for the model as it is.
KINDS: dict[str, tuple[str, ...] | None] = {
    "base": (),
    "subject": ("subject",),
    "style": ("style",),
    "stacked": ROLES,
    "ours": None,
}
MEASURED = ("stacked", "ours")
HEATED = ("subject", *MEASURED)  # whose burn is told
Place = tuple[str, int]  # kind, seed


@dataclass(frozen=True)
class Shot:
    """One picture, ``[height, width, 3]`` between 0 and 1; or the error that ended it, and no pixels."""

    image: Tensor
    error: str = ""


@dataclass(frozen=True)
class Eye:
    """An encoder that does not guide, and what it compares a role with.

    Attributes:
        source: CLIP_VISION or METRIC_ENCODER, from the input ``{role}_encoder``.
        references: pictures; without any, what the role's LoRAs draw alone stands for them.
    """

    role: str
    source: Any
    references: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class MeasuredPair:
    """What came of it. Everything by seed is in the order of ``whole``.

    Attributes:
        spec: what was fused, and how.
        seeds: all of them.
        whole: the seeds of which every picture is there; the others count nowhere.
        shots: by kind and seed.
        similarities: by role, then kind: cosine to the role's references.
        axes: the same by :func:`covered`, the way from the model alone to that role's LoRA alone.
        burn: by kind of :data:`HEATED`, then figure: how many times the style's alone.
        given: the roles that were compared with the user's own pictures.
    """

    spec: FusionSpec
    seeds: tuple[int, ...]
    whole: tuple[int, ...]
    shots: Mapping[Place, Shot]
    similarities: Mapping[str, Mapping[str, list[float]]]
    axes: Mapping[str, Mapping[str, list[float | None]]]
    burn: Mapping[str, Mapping[str, list[float]]]
    given: tuple[str, ...]


_unfinished: Unfinished[Place, Shot] = Unfinished()


def eyes_of(encoders: Mapping[str, Any], images: Mapping[str, Any], references: References | None) -> list[Eye]:
    """What compares each role that has an encoder; all by role.

    Raises:
        ConductorError: an encoder or a picture that cannot be used, or a picture without an encoder for it.
    """
    eyes = []
    for role in ROLES:
        pictures = pictures_of(role, references, images[role])
        if encoders[role] is not None:
            open_encoder(encoders[role], f"{role}_encoder").close()  # an error would come after all the sampling
            eyes.append(Eye(role, encoders[role], tuple(pictures)))
        elif images[role] is not None:
            raise ConductorError(
                f"{role}_image: there is no encoder to compare it by. Connect {role}_encoder, or leave {role}_image "
                "empty."
            )
    return eyes


def measure_pair(
    model: ModelPatcher, call: SamplerCall, seeds: Sequence[int], vae: Any, eyes: Sequence[Eye]
) -> MeasuredPair:
    """Draw all pictures and measure them.

    A picture that ends in an error leaves its seed out of the figures. Where the user stops it, or measuring fails, the
    finished pictures are kept for the next call with the same model and settings.

    Args:
        model: with a subject's and a style's LoRAs of ours.
        call: KSampler's inputs; its seed is not used.
        seeds: of the pictures.
        vae: decodes them.
        eyes: what compares them; none are needed.

    Raises:
        ConductorError: the model lacks LoRAs of a role.
        Exception: no picture could be made: why the first could not.
    """
    spec = live_of(model)[1]
    for role in ROLES:
        if all(lora.role != role for lora in spec.loras):
            raise ConductorError(
                f"model: it has no {role} LoRA, so there is no pair to measure. Choose one in Dual LoRA Dynamic Loader."
            )
    models: dict[str, ModelPatcher] = {}

    def shot(place: Place) -> Shot:
        kind, seed = place
        if kind not in models:
            roles = KINDS[kind]
            models.clear()  # one at a time
            models[kind] = model if roles is None else with_roles_alone(model, roles)
        return Shot(first_picture(vae, sampled(models[kind], replace(call, seed=seed))["samples"]))

    asked = (tuple(seeds), *(value for name, value in vars(call).items() if name != "seed"), vae)
    places = list(product(KINDS, seeds))  # a change of the model costs more than one of the seed
    shots = _unfinished.make_all(model, asked, places, shot, _failed)
    try:
        return _measured(spec, tuple(seeds), shots, eyes)
    except BaseException:
        _unfinished.keep(model, asked, {place: shot for place, shot in shots.items() if not shot.error})
        raise


def _failed(place: Place, error: Exception) -> Shot:
    return Shot(torch.zeros(0, 0, 3), printable(str(error) or type(error).__name__))


def _measured(
    spec: FusionSpec, seeds: tuple[int, ...], shots: Mapping[Place, Shot], eyes: Sequence[Eye]
) -> MeasuredPair:
    whole = tuple(seed for seed in seeds if not any(shots[kind, seed].error for kind in KINDS))
    images = {kind: torch.stack([shots[kind, seed].image for seed in whole]) for kind in KINDS if whole}
    similarities = {eye.role: _similarities(eye, images) for eye in eyes if whole}
    axes = {
        role: {kind: covered(found[kind], found["base"], found[role]) for kind in KINDS}
        for role, found in similarities.items()
    }
    burn = {kind: _burn(images[kind], images["style"]) for kind in HEATED if whole}
    given = tuple(eye.role for eye in eyes if eye.references)
    return MeasuredPair(spec, seeds, whole, shots, similarities, axes, burn, given)


def _similarities(eye: Eye, images: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """By kind. Without references those are the role's LoRAs' own pictures of the other seeds, where there are others:
    a picture of the same seed shares more than the LoRA with ours."""
    count = len(images[eye.role])
    every, known = embeddings(eye.source, f"{eye.role}_encoder", torch.cat(list(images.values())), list(eye.references))
    by_kind = dict(zip(images, every.split(count), strict=True))
    found: dict[str, list[float]] = {kind: [] for kind in by_kind}
    for index in range(count):
        others = [other for other in range(count) if other != index] or [index]
        reference = by_kind[eye.role][others] if known is None else known
        for kind, embedded in by_kind.items():
            found[kind] += cosine_similarity(embedded[index : index + 1], reference.to(embedded)).tolist()
    return found


def _burn(images: Tensor, anchors: Tensor) -> dict[str, list[float]]:
    ratios = burn_against(images.movedim(-1, 1), anchors.movedim(-1, 1))
    return {figure: values.tolist() for figure, values in ratios.items()}
