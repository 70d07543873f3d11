"""Reference pictures: what they are, and their embeddings, kept as long as the encoder lives."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..core import ConductorError
from .autograd import normal_copy
from .encoders import RunEncoder

KEPT = 64  # embeddings an encoder keeps; each is a few kilobytes
BRIGHTEST = 2.0  # resizing and decoding overshoot white by less
GREY = 0.5  # what masked-out pixels become
logger = logging.getLogger(__name__)
_embeddings: WeakKeyDictionary[Any, dict[str, torch.Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, or a batch of equal size: images [R, H, W, 3] in [0, 1], mask [R, H, W] or None, 1 = look here."""

    images: torch.Tensor
    mask: torch.Tensor | None = None

    def seen(self) -> list[torch.Tensor]:
        """What encoders get, [N, 3, h, w] each: masked pictures cut to their mask's box, grey outside the mask."""
        images = normal_copy(self.images).float().movedim(-1, 1)
        if self.mask is None:
            return [images]
        masked = []
        for image, mask in zip(images, normal_copy(self.mask).float(), strict=True):
            rows, columns = torch.nonzero(mask.amax(1) > 0.5)[:, 0], torch.nonzero(mask.amax(0) > 0.5)[:, 0]
            box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
            whole = image * mask + GREY * (1.0 - mask)
            masked.append(whole[:, box[0], box[1]][None])
        return masked


@dataclass(frozen=True, eq=False)
class References:
    """Pictures by role, as the node Guidance References gives them out."""

    subject: tuple[Picture, ...] = ()
    style: tuple[Picture, ...] = ()

    def of(self, role: str) -> list[Picture]:
        """The pictures of "subject" or "style"."""
        return list(self.subject if role == "subject" else self.style)


def picture_of(name: str, image: torch.Tensor, mask: torch.Tensor | None = None) -> Picture:
    """A checked Picture from an IMAGE [R, H, W, C] and a MASK [R or 1, H, W]; raises ConductorError naming `name`."""
    if image.ndim != 4 or image.shape[-1] < 3:
        raise ConductorError(f"{name}: expected pictures of shape [N, H, W, 3], got {list(image.shape)}.")
    if 0 in image.shape or min(image.shape[1:3]) < 8:
        raise ConductorError(f"{name}: the picture is empty or too small ({list(image.shape)}). Use a real picture.")
    if not torch.isfinite(image).all():
        raise ConductorError(f"{name}: the picture holds values that are not numbers. Check the nodes before it.")
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or mask.shape[1:] != image.shape[1:3] or mask.shape[0] not in (1, image.shape[0]):
            raise ConductorError(
                f"{name}: its mask has shape {list(mask.shape)}, the picture {list(image.shape)}. Use a mask of the "
                "same height and width."
            )
        mask = mask.expand(image.shape[0], -1, -1)
        if not (mask.flatten(1).amax(1) > 0.5).all():
            raise ConductorError(f"{name}: its mask is empty. Paint what is to be looked at, or disconnect the mask.")
        if min(min(seen.shape[-2:]) for seen in Picture(image[..., :3], mask).seen()) < 4:
            raise ConductorError(f"{name}: its mask covers too little. Paint a larger part of the picture.")
    if (brightest := float(image[..., :3].max())) > BRIGHTEST:
        logger.warning(
            f"LoRA Conductor: {name}: the picture's values go up to {brightest:.0f}, where 1 is white; what is above "
            "counts as white. Divide by 255 if it was made for 0 to 255."
        )
    return Picture(image[..., :3], mask)


def pictures_of(role: str, references: References | None, image: torch.Tensor | None) -> list[Picture]:
    """A role's reference pictures: those of `references` where there are any, else the IMAGE of the input
    "{role}_image", none if that is None too. Raises ConductorError naming that input."""
    given = references.of(role) if references is not None else []
    return given or ([] if image is None else [picture_of(f"{role}_image", image)])


def embed_references(source: Any, encoder: RunEncoder, pictures: Iterable[Picture]) -> torch.Tensor:
    """Embeddings [R, D] of the pictures, on the CPU; computed once for the same contents and encoder object.

    source: the node's encoder object, `encoder`: the same opened for a run and loaded.
    """
    cache = _embeddings.setdefault(source, {})
    found = []
    for picture in pictures:
        digest = _digest(picture)
        if digest not in cache:
            if len(cache) >= KEPT:
                cache.pop(next(iter(cache)))
            cache[digest] = torch.cat([encoder.embed(image).detach().cpu() for image in picture.seen()])
        found.append(cache[digest])
    return torch.cat(found)


def are_embedded(source: Any, pictures: Iterable[Picture]) -> bool:
    """Whether `embed_references` would not need the encoder."""
    return all(_digest(picture) in _embeddings.get(source, {}) for picture in pictures)


def _digest(picture: Picture) -> str:
    digest = hashlib.sha256()
    for tensor in (picture.images, picture.mask):
        if tensor is not None:
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
