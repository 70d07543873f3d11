"""Which prompts a model call computes, and which rows of a layer's features are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Which conditions a model call computes, in the order of its batch.

    Core puts the latents of one condition after another. Packs that cut a picture into tiles put whole batches of that
    kind one after another: the rows are then those of the first tile, of the second, and so on.

    Attributes:
        keys: one a condition; as many rows belong to each.
        followed: the condition the others may follow.
        rows: of the call's batch; 0 where that is not known.
        latents: how many the run samples; 0 where that is not known.
        only: where the call computes a single latent of several, which.
    """

    keys: tuple[str, ...] = ("",)
    followed: str = ""
    rows: int = 0
    latents: int = 0
    only: int | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Names under which the run remembers what was decided for each condition."""
        return tuple(self.place_of(key) for key in self.keys)

    def place_of(self, key: str) -> str:
        return key if self.only is None else f"{key}, latent {self.only}"

    @property
    def repeats(self) -> int:
        """How often all conditions follow each other."""
        once = len(self.keys) * self.latents
        return self.rows // once if once and self.rows and self.rows % once == 0 else 1

    def parts(self, values: Tensor) -> tuple[Tensor, ...] | None:
        """The rows of each condition, or None where these are not the rows of the call."""
        if len(self.keys) == 1:
            return (values,)
        if values.shape[0] % len(self.keys) or (self.rows and values.shape[0] != self.rows):
            return None
        if self.repeats == 1:
            return values.chunk(len(self.keys))
        by_repeat = values.unflatten(0, (self.repeats, len(self.keys), -1))
        return tuple(part.flatten(0, 1) for part in by_repeat.unbind(1))

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows of all conditions, from those of each."""
        if len(parts) == 1:
            return parts[0]
        if self.repeats == 1:
            return torch.cat(list(parts))
        by_repeat = [part.unflatten(0, (self.repeats, -1)) for part in parts]
        return torch.stack(by_repeat, 1).flatten(0, 2)

    def of_one(self, index: int, latent: int | None = None) -> Batch:
        """The call of one of the conditions alone, and of one of its latents if that is given."""
        rows = self.rows // len(self.keys) if latent is None else 1
        return Batch((self.keys[index],), self.followed, rows, self.latents, latent)
