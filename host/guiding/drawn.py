"""Reference pictures with no photo at hand: each LoRA alone draws its own (Eq. 14-15 of arXiv 2602.15539)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...fusion.policies import Solo
from ..core import ConductorError, SamplerCall, sampled
from ..fusing import attachment_of, set_policy
from .plan import GuidancePlan

SOURCES = ("pictures", "each LoRA alone")
KEPT = 8  # pictures a VAE keeps
_drawn: WeakKeyDictionary[Any, OrderedDict[str, torch.Tensor]] = WeakKeyDictionary()


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
    key = _digest(model, [lora.header() for lora in spec.loras if lora.role == role], call)
    if key not in kept:
        empty = {"samples": torch.zeros_like(call.latent_image["samples"][:1])}
        latent = sampled(set_policy(model, Solo(role)), dataclasses.replace(call, latent_image=empty, denoise=1.0))
        image = vae.decode(latent["samples"])
        kept[key] = image.reshape(-1, *image.shape[-3:])[:1].detach().cpu()
        while len(kept) > KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _digest(model: Any, loras: list[dict[str, Any]], call: SamplerCall) -> str:
    digest = hashlib.sha256()
    samples = call.latent_image["samples"]
    settings = (call.seed, call.steps, call.cfg, call.sampler_name, call.scheduler, tuple(samples.shape[1:]))
    digest.update(repr((id(model.model), str(model.patches_uuid), loras, settings)).encode())
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
