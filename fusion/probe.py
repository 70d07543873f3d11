"""What a decision may look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from .bypasses import like
from .sampling import take
from .segment import Segment
from .segments import ROLES

if TYPE_CHECKING:
    from .layers import FusedLayer


class Probe:
    """What a decision may look at in one call of one segment.

    Attributes:
        segment: the segment.
        base: its output without LoRAs, ``[batch, tokens, channels]``.
        hidden: the joined hidden features ``[batch, tokens, rank]``, the subject's first; None without low-rank deltas.
        space: size of the output of a convolution, None for a linear.
    """

    def __init__(
        self,
        layer: FusedLayer,
        segment: Segment,
        base: Tensor,
        hidden: Tensor | None,
        beside: dict[int, Tensor],
        space: tuple[int, ...] | None,
    ) -> None:
        self.segment, self.base, self.hidden, self.space = segment, base, hidden, space
        self._layer, self._beside = layer, beside

    def beside(self, index: int) -> Tensor:
        """The segment's part of what a bypass adds."""
        start = self._layer._bypass(index).start
        return self._beside[index][..., self.segment.start - start : self.segment.stop - start]

    def delta(self, role: str, tokens: int = 0) -> Tensor:
        """What a role's LoRAs add to that many tokens, 0 for all, ``[batch, tokens, channels]``."""
        parts = [take(self.beside(i), tokens) for i in self.segment.bypasses.get(role, ())]
        if role in self.segment.rows:
            assert self.hidden is not None
            columns = self.segment.columns(role)
            thin = take(self.hidden[..., columns], tokens)
            parts.insert(0, F.linear(thin, like(self._layer.up(self.segment)[:, columns], thin)))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def energies(self, tokens: int = 0) -> dict[str, Tensor]:
        """``||h||^2`` of both roles over that many tokens, 0 for all, ``[batch]`` float32.

        Low-rank deltas are not unfolded for it: ``||B z||^2 = z^T (B^T B) z``.
        """
        if self.segment.bypasses or self.hidden is None:
            return {role: self.delta(role, tokens).float().square().sum((-2, -1)) for role in ROLES}
        thin = take(self.hidden, tokens).float()
        gram = self._layer.get_parameter(f"gram_{self.segment.start}").to(thin.device)
        products = (thin @ gram).mul_(thin).sum(1)
        return {role: products[:, self.segment.columns(role)].sum(-1) for role in ROLES}
