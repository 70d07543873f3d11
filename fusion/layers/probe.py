"""What a decision may look at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import like
from ..roles import ROLES
from .segment import Segment
from .tokens import take, take_repeated, take_rows


class Probe:
    """What a decision may look at in one call of one segment.

    Attributes:
        segment: the segment.
        base: its output without LoRAs, ``[batch, tokens, channels]``.
        hidden: the joined hidden features ``[batch, tokens, rank]``, the subject's first; None without low-rank deltas.
        beside: by index of a bypass, the segment's part of what it adds, ``[batch, tokens, channels]``.
        space: size of the output of a convolution, None for a linear.
        mixed: whether nobody can tell which row of the model call a row here belongs to.

    ``up`` is the joined up-projection ``[channels, rank]``, None without low-rank deltas.
    """

    def __init__(
        self,
        segment: Segment,
        base: Tensor,
        hidden: Tensor | None = None,
        up: Tensor | None = None,
        beside: Mapping[int, Tensor] | None = None,
        space: tuple[int, ...] | None = None,
    ) -> None:
        self.segment, self.base, self.hidden, self.space = segment, base, hidden, space
        self.beside = beside or {}
        self._up = up
        self.mixed = False

    def delta(self, role: str, tokens: int = 0) -> Tensor:
        """What a role's LoRAs add to that many tokens, 0 for all, ``[batch, tokens, channels]``."""
        parts = [take(self.beside[i], tokens) for i in self.segment.bypasses.get(role, ())]
        if role in self.segment.rows:
            assert self.hidden is not None and self._up is not None
            columns = self.segment.columns(role)
            thin = take(self.hidden[..., columns], tokens)
            parts.insert(0, F.linear(thin, like(self._up[:, columns], thin)))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    @property
    def measures_hidden(self) -> bool:
        """Whether the hidden features are as loud as what they add (:meth:`norms`)."""
        return not self.segment.bypasses and self.hidden is not None

    @property
    def is_low_rank(self) -> bool:
        """Whether both roles have low-rank deltas here, and no others (:meth:`deltas`)."""
        return self.hidden is not None and self.segment.is_low_rank

    def deltas(self, tokens: int = 0) -> Tensor:
        """What both roles add to that many tokens, 0 for all, ``[2, batch, tokens, channels]`` float32.

        Only where ``is_low_rank``.
        """
        return self._products(tokens).float()

    def moved(self, before: int, after: int, tokens: int = 0) -> Tensor:
        """The output at that many tokens, 0 for all, as it is and as each role alone moves it.

        Only where ``is_low_rank``.

        Returns:
            ``[before + 2 + after, batch, tokens, channels]`` float32: some copies without LoRAs, then with the
            subject's, with the style's, and some without again.
        """
        assert self.hidden is not None and self._up is not None
        found = take_repeated(self.base, tokens, before + 2 + after)
        if found.dtype == torch.float32 and self._alike:
            pairs, up = self._factors(tokens)
            found[before : before + 2].flatten(1, 2).baddbmm_(pairs, up)
        else:
            found = found.float()
            found[before : before + 2].add_(self._products(tokens))
        return found

    @property
    def _alike(self) -> bool:
        return self.segment.rank(ROLES[0]) == self.segment.rank(ROLES[1])

    def _factors(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Of both roles, whose ranks are alike: hidden features ``[2, batch * tokens, rank]`` of that many tokens, and
        up-projections ``[2, rank, channels]``."""
        assert self.hidden is not None and self._up is not None
        thin = take(self.hidden, tokens)
        pairs = thin.flatten(0, 1).unflatten(-1, (2, -1)).transpose(0, 1)
        return pairs, like(self._up, thin).unflatten(1, (2, -1)).permute(1, 2, 0)

    def _products(self, tokens: int) -> Tensor:
        """As :meth:`deltas`, in the layer's own precision."""
        assert self.hidden is not None and self._up is not None
        if self._alike:
            # The same products as one by one, of both roles at once.
            return torch.bmm(*self._factors(tokens)).unflatten(1, (self.hidden.shape[0], -1))
        thin = take(self.hidden, tokens)
        up, columns = like(self._up, thin), [self.segment.columns(role) for role in ROLES]
        return torch.stack([F.linear(thin[..., own], up[:, own]) for own in columns])

    def norms(self, tokens: int = 0) -> Tensor:
        """``||h||`` of subject, style, and the subject again over that many tokens, 0 for all, ``[batch, 3]`` float32.

        So both ``(subject, style)`` and ``(style, subject)`` are views of it. Only where ``measures_hidden``.
        """
        assert self.hidden is not None
        rank, other = (self.segment.rank(role) for role in ROLES)
        hidden = self.hidden
        if rank == other and hidden.is_contiguous():
            thin = take_rows(hidden.unflatten(-1, (2, rank)).flatten(1, 2), hidden.shape[1], tokens)
            return torch.linalg.vector_norm(thin.unflatten(1, (-1, 3)), dim=(1, 3), dtype=torch.float32)
        thin = take(hidden, tokens)
        parts = [thin[..., self.segment.columns(role)] for role in ROLES]
        norms = [torch.linalg.vector_norm(part, dim=(1, 2), dtype=torch.float32)[:, None] for part in parts]
        return torch.cat([*norms, norms[0]], dim=1)

    def energies(self, tokens: int = 0) -> dict[str, Tensor]:
        """``||h||^2`` of both roles over that many tokens, 0 for all, ``[batch]`` float32."""
        if self.measures_hidden:
            norms = self.norms(tokens)
            return {role: norms[:, i].square() for i, role in enumerate(ROLES)}
        return {role: self.delta(role, tokens).float().square().sum((-2, -1)) for role in ROLES}
