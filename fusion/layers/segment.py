"""A run of output channels that the same deltas write to: the unit of decision."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..roles import ROLES
from .pairing import Pairing

# Of a branch: a number for all, or float32 that broadcasts over [batch, tokens, heads].
Weight = Tensor | float


def whole_of(name: str) -> str:
    """The layer that a segment is a part of."""
    return name.partition("[")[0]


@dataclass(frozen=True)
class Part:
    """What a run of a layer's output channels is, in the model.

    Attributes:
        start, stop: the channels.
        kind: ``q``, ``k``, ``v`` or ``out`` of an attention, or ``mlp`` beside them in one layer.
        head_width: channels of an attention head, where the run is made of heads.
        group: a name that queries share with their keys, and values with their output.
    """

    start: int
    stop: int
    kind: str
    head_width: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Segment:
    """Where a segment lies, and which deltas of a ``FusedLayer`` write to it.

    Attributes:
        name: the layer's, with the channels if they are not all.
        start, stop: the channels.
        rows: by role, the rows of the layer's joined down-projection; of zeros, too, where the narrower role's are
            filled up to the wider's.
        bypasses: by role, indices of the other deltas among the layer's bypasses.
        head_width: channels of an attention head, where the segment is made of heads.
        group: a name that the segments of one attention share which may decide together (:class:`Part`).
        of_text: whether its tokens are those of a text, and no picture.
        pairing: how both roles meet in it.
    """

    name: str
    start: int
    stop: int
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    bypasses: dict[str, tuple[int, ...]] = field(default_factory=dict)
    head_width: int | None = None
    group: str | None = None
    of_text: bool = False
    pairing: Pairing = Pairing()

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for role in ROLES if role in self.rows or role in self.bypasses)

    @property
    def shared(self) -> bool:
        return self.roles == ROLES

    def rank(self, role: str) -> int:
        """Rows of a role's joined low-rank deltas: their rank, or more."""
        return len(self.rows.get(role, ()))

    def columns(self, role: str) -> slice:
        """A role's columns of the segment's joined up-projection."""
        start = 0 if role == ROLES[0] else self.rank(ROLES[0])
        return slice(start, start + self.rank(role))

    @property
    def is_low_rank(self) -> bool:
        """Whether both roles have low-rank deltas here, and no others."""
        return not self.bypasses and len(self.rows) == len(ROLES)

    @property
    def span(self) -> tuple[int, int]:
        """The rows as a run: they are neighbours."""
        rows = [row for role in ROLES for row in self.rows.get(role, ())]
        return rows[0], rows[-1] + 1


@dataclass(frozen=True)
class SegmentDeltas:
    """What both roles do to one run of output channels; strengths and scales are folded into the up-projections.

    Attributes:
        name: e.g. ``diffusion_model.double_blocks.0.img_attn.qkv[0:256]``.
        down: role to ``[rank, in, *kernel]`` float32.
        up: role to ``[out, rank]`` float32.
    """

    name: str
    down: dict[str, Tensor]
    up: dict[str, Tensor]

    def rank(self, role: str) -> int:
        return self.down[role].shape[0]

    def dense(self, role: str) -> Tensor:
        """``dW`` of a role, ``[out, in, *kernel]``."""
        down = self.down[role]
        return (self.up[role] @ down.flatten(1)).reshape(self.up[role].shape[0], *down.shape[1:])

    def energy(self, role: str) -> float:
        """``||dW||_F^2 = tr((B^T B)(A A^T))``, without the dense product."""
        up, down = self.up[role].double(), self.down[role].double().flatten(1)
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0))

    def l1_and_top(self, role: str, k: int) -> tuple[float, float]:
        """``||dW||_1`` and the sum of the ``k`` largest ``|dW|`` entries (K-LoRA's importance)."""
        flat = self.dense(role).flatten().abs()
        top = torch.topk(flat, min(k, flat.numel())).values
        return float(flat.sum(dtype=torch.float64)), float(top.sum(dtype=torch.float64))
