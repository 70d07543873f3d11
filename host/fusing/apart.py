"""A model call that core made for several prompts and latents, as calls of their own.

Some models mix the rows of a call inside: tokens of all samples are sent to experts, the batch is folded into the
tokens or computed in chunks. No layer there can tell what belongs to which prompt; calls of one prompt can, and core
itself makes such calls where memory is short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import torch
from torch import Tensor

from ...fusion.layers import Batch

OPTIONS = 5  # place of transformer_options after x, t, c_concat, c_crossattn, control


@dataclass(frozen=True)
class Part:
    """One of the calls.

    Attributes:
        batch: what it computes.
        prompt: place of its prompt in the whole call.
        rows: of the whole call.
        of: how many rows that has.
    """

    batch: Batch
    prompt: int
    rows: Tensor
    of: int

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """This call's arguments for ``BaseModel.apply_model``, from those of the whole call."""
        own = [self._options(value) if place == OPTIONS else self._rows(value) for place, value in enumerate(args)]
        named = {
            name: self._options(value) if name == "transformer_options" else self._rows(value)
            for name, value in kwargs.items()
        }
        return tuple(own), named

    def _rows(self, value: Any) -> Any:
        """The rows of every tensor, at any depth, that has as many as the call."""
        if isinstance(value, Tensor):
            return value[self.rows] if value.ndim and value.shape[0] == self.of else value
        if isinstance(value, dict):
            return {key: self._rows(inner) for key, inner in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._rows(inner) for inner in value)
        return value

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What core says in ``transformer_options`` of the prompts in the call."""
        found = dict(options)
        for name in ("cond_or_uncond", "uuids"):
            if found.get(name):
                found[name] = [found[name][self.prompt]]
        if "sigmas" in found:
            found["sigmas"] = self._rows(found["sigmas"])
        return found


def apart(batch: Batch, x: Tensor, by_latent: bool) -> list[Part]:
    """The calls that a call on latents ``[rows, channels, ...]`` can be made of; none where it is one already.

    Args:
        by_latent: whether latents may run apart too, and not only prompts.
    """
    parts = batch.parts(torch.arange(len(x), device=x.device))
    if parts is None or len(x) == 1 or (len(parts) == 1 and not by_latent):
        return []
    if not by_latent:
        return [Part(batch.of_one(i), i, rows, len(x)) for i, rows in enumerate(parts)]
    return [
        Part(batch.of_one(i, latent), i, rows[latent : latent + 1], len(x))
        for i, rows in enumerate(parts)
        for latent in range(len(rows))
    ]


def together(outputs: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """The output of the whole call."""
    order = torch.cat([part.rows for part in parts])
    return torch.cat(list(outputs))[order.argsort()]


def have_latents_of_their_own(model: Any) -> bool:
    """Whether the latents of a batch are pictures of their own, and not the frames of one video."""
    patcher = getattr(model, "current_patcher", None)
    # AnimateDiff's kind of motion modules are injected into the model.
    return not isinstance(model, comfy.model_base.SVD_img2vid) and not getattr(patcher, "injections", None)
