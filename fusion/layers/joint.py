"""Neighbouring segments of one layer, looked at and added together: as few operations as for a single one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..adapters import like
from ..roles import ROLES
from .additions import add_product
from .segment import Segment
from .tokens import take, take_repeated, take_rows


class Joint:
    """What decisions may look at in one call of neighbouring segments with low-rank deltas of the same ranks.

    Attributes:
        segments: one after the other.
        base: their output without LoRAs, ``[batch, tokens, channels]``.
        hidden: their hidden features ``[batch, tokens, segments * rank]``, of each the subject's first.
        up: their up-projections ``[channels, rank]``, of both roles together.
        mixed: whether nobody can tell which row of the model call a row here belongs to.
    """

    def __init__(self, segments: Sequence[Segment], base: Tensor, hidden: Tensor, up: Tensor, mixed: bool) -> None:
        self.segments, self.base, self.hidden, self.up, self.mixed = segments, base, hidden, up, mixed
        self.ranks = tuple(segments[0].rank(role) for role in ROLES)

    def channels(self, segment: Segment) -> slice:
        """Those of a segment in ``base``, and rows of ``up``."""
        start = self.segments[0].start
        return slice(segment.start - start, segment.stop - start)

    def norms(self, tokens: int = 0) -> Tensor:
        """``||h||`` of subject, style, and the subject again over that many tokens, 0 for all: ``[batch, segments, 3]``
        float32."""
        count, (rank, other) = len(self.segments), self.ranks
        if rank == other and self.hidden.is_contiguous():
            pairs = self.hidden.unflatten(-1, (2 * count, rank)).flatten(1, 2)
            thin = take_rows(pairs, self.hidden.shape[1], tokens, count).unflatten(1, (-1, count, 3))
            return torch.linalg.vector_norm(thin, dim=(1, 4), dtype=torch.float32)
        thin = take(self.hidden, tokens).unflatten(-1, (count, -1))
        norms = [torch.linalg.vector_norm(p, dim=(1, 3), dtype=torch.float32) for p in thin.split(self.ranks, dim=-1)]
        return torch.stack([*norms, norms[0]], dim=-1)

    def alike(self) -> Iterator[tuple[int, int, slice]]:
        """Runs of segments of one width: the first, the one after the last, and their channels."""
        first = 0
        for _, run in groupby(self.segments, key=lambda segment: segment.stop - segment.start):
            segments = list(run)
            channels = slice(self.channels(segments[0]).start, self.channels(segments[-1]).stop)
            yield first, first + len(segments), channels
            first += len(segments)

    def sample(self, first: int, last: int, channels: slice, tokens: int = 0) -> Tensor:
        """The output without LoRAs of segments of one width at that many tokens, ``[segments * batch, tokens,
        channels]``."""
        own = self.base[..., channels].unflatten(-1, (last - first, -1)).permute(2, 0, 1, 3)
        return take(own, tokens, 2).flatten(0, 1)

    def deltas(self, thin: Tensor, first: int, last: int, channels: slice) -> Tensor:
        """What both roles add to some tokens of segments of one width, ``[2, segments * batch, tokens, channels]``
        float32.

        Args:
            thin: the hidden features of those tokens.
            first, last, channels: of the segments.
        """
        return self._products(thin, first, last, channels).float()

    def moved(
        self, before: int, after: int, thin: Tensor, first: int, last: int, channels: slice, tokens: int = 0
    ) -> Tensor:
        """Their output at some tokens as it is and as each role alone moves it: :meth:`Probe.moved`, of segments of one
        width. ``[before + 2 + after, segments * batch, tokens, channels]``."""
        found = take_repeated(self.base[..., channels], tokens, before + 2 + after, last - first)
        if found.dtype != torch.float32:
            found = found.float()
            found[before : before + 2].add_(self._products(thin, first, last, channels))
            return found
        own = found[before : before + 2].unflatten(1, (last - first, -1)).flatten(2, 3)
        flat, up = self._factors(thin, first, last, channels)
        if last - first == 1 and self.ranks[0] == self.ranks[1]:
            own[:, 0].baddbmm_(*self._by_role(flat[0], up[0]))
        else:
            for role, its in enumerate(self._columns):
                own[role].baddbmm_(flat[..., its], up[..., its].transpose(1, 2))
        return found

    @property
    def _columns(self) -> tuple[slice, slice]:
        rank, other = self.ranks
        return slice(0, rank), slice(rank, rank + other)

    def _factors(self, thin: Tensor, first: int, last: int, channels: slice) -> tuple[Tensor, Tensor]:
        """Of segments of one width: hidden features ``[segments, batch * tokens, rank]``, and up-projections
        ``[segments, channels, rank]``."""
        flat = thin.unflatten(-1, (len(self.segments), -1))[:, :, first:last].flatten(0, 1).transpose(0, 1)
        return flat, like(self.up[channels], thin).unflatten(0, (last - first, -1))

    @staticmethod
    def _by_role(flat: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """One segment's factors, where both ranks are alike, as a product of both roles at once."""
        return flat.unflatten(-1, (2, -1)).transpose(0, 1), up.unflatten(1, (2, -1)).permute(1, 2, 0)

    def _products(self, thin: Tensor, first: int, last: int, channels: slice) -> Tensor:
        """As :meth:`deltas`, in the layers' own precision."""
        count, (rank, other) = last - first, self.ranks
        batch, taken, _ = thin.shape
        flat, up = self._factors(thin, first, last, channels)
        if count == 1 and rank == other:
            found = torch.bmm(*self._by_role(flat[0], up[0]))
        else:
            found = thin.new_empty(2, count, batch * taken, up.shape[1])
            for role, own in enumerate(self._columns):
                torch.bmm(flat[..., own], up[..., own].transpose(1, 2), out=found[role])
        return found.reshape(2, count * batch, taken, -1)

    def add(self, pairs: Tensor) -> None:
        """Add both branches to ``base``, in place, rounding once.

        Args:
            pairs: both weights of each segment, float32 ``[segments, batch or 1, 2]``.
        """
        hidden = self._weighted(pairs)
        batch, tokens, _ = self.base.shape
        up = like(self.up, self.base)
        for first, last, channels in self.alike():
            part, own = self.base[..., channels], up[channels]
            if last - first == 1 or not (batch == 1 or part.stride(0) == tokens * part.stride(1)):
                for i, segment in enumerate(self.segments[first:last], first):
                    add_product(self.base[..., self.channels(segment)], hidden[i], up[self.channels(segment)])
                continue
            together = part.unflatten(-1, (last - first, -1)).flatten(0, 1).transpose(0, 1)
            together.baddbmm_(hidden[first:last].flatten(1, 2), own.unflatten(0, (last - first, -1)).transpose(1, 2))

    def _weighted(self, pairs: Tensor) -> Tensor:
        """Hidden features times their weights, rounded once, ``[segments, batch, tokens, rank]``."""
        hidden = self.hidden.unflatten(-1, (len(self.segments), -1)).permute(2, 0, 1, 3)
        rank, other = self.ranks
        if rank == other:
            hidden, gains = hidden.unflatten(-1, (2, -1)), pairs[:, :, None, :, None]
        else:
            columns = [pairs[..., i : i + 1].expand(-1, -1, its) for i, its in enumerate(self.ranks)]
            gains = torch.cat(columns, dim=-1)[:, :, None]
        dtype = self.base.dtype
        if torch.is_grad_enabled() and (hidden.requires_grad or pairs.requires_grad):
            scaled = (hidden * gains).to(dtype).contiguous()
        else:
            scaled = torch.mul(hidden, gains, out=torch.empty(hidden.shape, dtype=dtype, device=hidden.device))
        return scaled.reshape(*scaled.shape[:3], -1)
