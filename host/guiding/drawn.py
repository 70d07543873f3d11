"""Reference pictures with no photo at hand: each LoRA alone draws its own (Eq. 14-15 of arXiv 2602.15539)."""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch

from ...fusion.policies import Solo
from ..core import ConductorError, SamplerCall, sampled
from ..fusing import attachment_of, set_policy
from .plan import GuidancePlan

SOURCES = ("pictures", "each LoRA alone")
KEPT = 8  # pictures a VAE keeps
OURS = "lora_conductor"  # begins the names under which models carry what is ours


class _Drawn(NamedTuple):
    """A picture, and what else made the model what it was: nodes' objects, known by identity as long as they live."""

    image: torch.Tensor
    parts: tuple[Any, ...]

    @property
    def is_current(self) -> bool:
        return all(part() is not None for part in self.parts if isinstance(part, ref))


_drawn: WeakKeyDictionary[Any, OrderedDict[str, _Drawn]] = WeakKeyDictionary()


def with_drawn_references(plan: GuidancePlan, model: Any, call: SamplerCall, positives: dict[str, Any]) -> GuidancePlan:
    """The plan with a picture for each guided role that has none, drawn by that role's LoRAs alone.

    positives: CONDITIONING of a role's own prompt, where there is one; else the picture's. Raises ConductorError if the
    model has no LoRA of a role.
    """
    if plan.vae is None:
        raise ConductorError("vae: references drawn by the LoRAs have to be decoded. Connect a VAE.")
    for role in plan.picture_roles():
        if not plan.given_pictures(role):
            own = dataclasses.replace(call, positive=positives.get(role) or call.positive)
            drawn: dict[str, Any] = {f"{role}_image": _draw(model, role, own, plan.vae)}
            plan = dataclasses.replace(plan, **drawn)
    return plan


def _draw(model: Any, role: str, call: SamplerCall, vae: Any) -> torch.Tensor:
    """IMAGE [1, H, W, 3], drawn once for the same model, LoRAs and settings."""
    spec = attachment_of(model).spec
    if spec is None or all(lora.role != role for lora in spec.loras):
        raise ConductorError(
            f"{role}_image: the model has no {role} LoRA to draw a reference with. Connect a model from Dual LoRA "
            f"Dynamic Loader, or a picture, or set {role}_strength to 0."
        )
    kept = _drawn.setdefault(vae, OrderedDict())
    parts = list(_parts((model.object_patches, model.model_options, model.wrappers, model.callbacks)))
    key = _digest(model, parts, [lora.header() for lora in spec.loras if lora.role == role], call)
    if key not in kept or not kept[key].is_current:
        empty = {"samples": torch.zeros_like(call.latent_image["samples"][:1])}
        latent = sampled(set_policy(model, Solo(role)), dataclasses.replace(call, latent_image=empty, denoise=1.0))
        image = vae.decode(latent["samples"])
        picture = image.reshape(-1, *image.shape[-3:])[:1].detach().cpu()
        kept[key] = _Drawn(picture, tuple(_held(part) for _, part in parts))
        while len(kept) > KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key].image


def _parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What other nodes put on a model besides its weights, such as a shifted schedule: place and object. Core gives a
    patched model no new version for it."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not str(name).startswith(OURS):
                yield from _parts(part, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _parts(part, f"{path}.{i}")
    elif isinstance(value, types.MethodType):
        yield from _parts(value.__self__, f"{path}.{value.__name__}")
    else:
        yield path, value


def _held(part: Any) -> Any:
    """So that its place in memory is nobody else's unseen."""
    try:
        return ref(part)
    except TypeError:
        return part


def _digest(model: Any, parts: list[tuple[str, Any]], loras: list[dict[str, Any]], call: SamplerCall) -> str:
    digest = hashlib.sha256()
    samples = call.latent_image["samples"]
    settings = (call.seed, call.steps, call.cfg, call.sampler_name, call.scheduler, tuple(samples.shape[1:]))
    plain = (bool, int, float, str, type(None))
    known = [(path, part if isinstance(part, plain) else id(part)) for path, part in parts]
    digest.update(repr((id(model.model), str(model.patches_uuid), known, loras, settings)).encode())
    for conditioning in (call.positive, call.negative):
        _feed(digest, conditioning)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Contents of nested conditioning; objects such as ControlNets count by identity."""
    if isinstance(value, torch.Tensor):
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _feed(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(b"[")
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())
