"""What a decision may look at."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from ..adapters import like
from ..roles import ROLES
from .segment import Segment
from .tokens import take


class Probe:
    """What a decision may look at in one call of one segment.

    Attributes:
        segment: the segment.
        base: its output without LoRAs, ``[batch, tokens, channels]``.
        hidden: the joined hidden features ``[batch, tokens, rank]``, the subject's first; None without low-rank deltas.
        beside: by index of a bypass, the segment's part of what it adds, ``[batch, tokens, channels]``.
        space: size of the output of a convolution, None for a linear.
        mixed: whether nobody can tell which row of the model call a row here belongs to.

    ``up`` is the joined up-projection ``[channels, rank]``, ``gram`` its Gram matrices by role ``[rank, rank]``; both
    None without low-rank deltas.
    """

    def __init__(
        self,
        segment: Segment,
        base: Tensor,
        hidden: Tensor | None = None,
        up: Tensor | None = None,
        gram: Tensor | None = None,
        beside: Mapping[int, Tensor] | None = None,
        space: tuple[int, ...] | None = None,
    ) -> None:
        self.segment, self.base, self.hidden, self.space = segment, base, hidden, space
        self.beside = beside or {}
        self._up, self._gram = up, gram
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

    def energies(self, tokens: int = 0) -> dict[str, Tensor]:
        """``||h||^2`` of both roles over that many tokens, 0 for all, ``[batch]`` float32.

        Low-rank deltas are not unfolded for it: ``||B z||^2 = z^T (B^T B) z``.
        """
        if self.segment.bypasses or self.hidden is None or self._gram is None:
            return {role: self.delta(role, tokens).float().square().sum((-2, -1)) for role in ROLES}
        thin = take(self.hidden, tokens).float()
        products = (thin @ self._gram.to(thin.device)).mul_(thin).sum(1)
        return {role: products[:, self.segment.columns(role)].sum(-1) for role in ROLES}
