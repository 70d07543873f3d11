"""One model layer with its LoRA branches: factors joined once, deltas scored and added in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deltas import LowRankDelta
from .segments import ROLES, SegmentDeltas

# A branch's weight: per sample [batch], one number for all, or 1.
Weight = Tensor | float
# Asked once per shared segment: (segment, base [batch, tokens, channels], delta of a role on every n-th token).
Decide = Callable[["Segment", Tensor, Callable[[str, int], Tensor]], dict[str, Weight]]


@dataclass(frozen=True)
class Geometry:
    """How a layer maps its input to its output: a linear (``kernel`` empty) or a 1-3 dimensional convolution."""

    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    @property
    def is_conv(self) -> bool:
        return bool(self.kernel)


@dataclass(frozen=True)
class Branch:
    """One delta's share of a segment: its rows of the joined down-projection, and its up-projection's name."""

    columns: tuple[int, int]
    up: str


@dataclass(frozen=True)
class Segment:
    """A run of output channels that the same deltas write to: the unit of decision."""

    name: str
    start: int
    stop: int
    branches: dict[str, tuple[Branch, ...]] = field(default_factory=dict)

    @property
    def shared(self) -> bool:
        return all(self.branches.get(role) for role in ROLES)


class FusedLayer(nn.Module):
    """The deltas of one layer, by role, ready to be added to its output.

    All down-projections are joined into one ``[total rank, in, *kernel]``; strength and scale are folded into the
    up-projections in float32 before they are rounded to ``dtype``. Fused weights (qkv) are cut at every slice border,
    so whole and sliced LoRAs can meet on one module.

    Args:
        name: the layer's name in the model, e.g. ``diffusion_model.double_blocks.0.img_attn.qkv``.
        geometry: of the layer.
        deltas: per delta its role ("subject" or "style"), strength and factors.
        dtype: the dtype the layer computes in.
    """

    def __init__(
        self,
        name: str,
        geometry: Geometry,
        deltas: Sequence[tuple[str, float, LowRankDelta]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.name = name
        self.geometry = geometry
        # Subject first, then by position: branches then use neighbouring rows wherever the file allows it.
        ordered = sorted(deltas, key=lambda d: (ROLES.index(d[0]), d[2].out_start))
        self.down = _frozen(torch.cat([_whole_input(d, geometry.in_features) for _, _, d in ordered]).to(dtype))
        starts = [0]
        for _, _, delta in ordered:
            starts.append(starts[-1] + delta.rank)
        borders = sorted({b for _, _, d in ordered for b in (d.out_start, d.out_stop)})
        self.segments: list[Segment] = []
        for start, stop in zip(borders, borders[1:], strict=False):
            branches: dict[str, tuple[Branch, ...]] = {}
            for i, (role, strength, delta) in enumerate(ordered):
                if delta.out_start <= start and stop <= delta.out_stop:
                    rows = delta.up[start - delta.out_start : stop - delta.out_start]
                    up_name = f"up_{start}_{i}"
                    self.register_parameter(up_name, _frozen((rows.float() * (delta.scale * strength)).to(dtype)))
                    branch = Branch((starts[i], starts[i + 1]), up_name)
                    branches[role] = (*branches.get(role, ()), branch)
            if branches:
                whole = start == 0 and stop == geometry.out_features
                self.segments.append(Segment(name if whole else f"{name}[{start}:{stop}]", start, stop, branches))

    def segment_deltas(self, segment: Segment) -> SegmentDeltas:
        """The factors of a segment by role, float32, on the CPU: for statistics and static merges."""
        down, up = {}, {}
        for role, branches in segment.branches.items():
            down[role] = torch.cat([self.down[b.columns[0] : b.columns[1]] for b in branches]).float().cpu()
            up[role] = torch.cat([getattr(self, b.up) for b in branches], dim=1).float().cpu()
        return SegmentDeltas(segment.name, down, up)

    def fuse(self, x: Tensor, base: Tensor, decide: Decide) -> Tensor:
        """Add the routed deltas to the layer's own output.

        Args:
            x: the layer's input, ``[batch, ..., in]`` or ``[batch, in, *space]`` for a convolution.
            base: its output without LoRAs, ``[batch, ..., out]`` or ``[batch, out, *space]``.
            decide: gives the weights of a shared segment's branches; a segment of one role is added whole.

        Returns:
            The fused output, shaped and typed as ``base``; ``base`` itself is reused for it.
        """
        tokens = self._tokens(base)
        hidden = self._hidden(x)
        for segment in self.segments:
            part = tokens[..., segment.start : segment.stop]
            weights: dict[str, Weight] = {}
            if segment.shared:
                weights = decide(segment, part, self._delta_of(segment, hidden))
            for role, branches in segment.branches.items():
                weight = weights.get(role, 1.0)
                if isinstance(weight, float) and weight == 0.0:
                    continue
                for branch in branches:
                    part.add_(self._up(branch, _scaled(hidden[..., slice(*branch.columns)], weight)))
        return self._untoken(tokens, base)

    def _delta_of(self, segment: Segment, hidden: Tensor) -> Callable[[str, int], Tensor]:
        def delta(role: str, stride: int) -> Tensor:
            total: Tensor | None = None
            for branch in segment.branches[role]:
                part = self._up(branch, hidden[:, ::stride, slice(*branch.columns)])
                total = part if total is None else total + part
            assert total is not None
            return total

        return delta

    def _up(self, branch: Branch, hidden: Tensor) -> Tensor:
        return F.linear(hidden, _like(getattr(self, branch.up), hidden))

    def _hidden(self, x: Tensor) -> Tensor:
        """The joined down-projection of the input: ``[batch, tokens, total rank]``."""
        down = _like(self.down, x)
        g = self.geometry
        if not g.is_conv:
            return self._tokens(F.linear(x, down))
        padding = g.padding
        if g.padding_mode != "zeros" and not isinstance(padding, str):
            x = F.pad(x, [p for p in reversed(padding) for _ in (0, 1)], mode=g.padding_mode)
            padding = (0,) * len(padding)
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(g.kernel) - 1]
        return self._tokens(conv(x, down, None, g.stride, padding, g.dilation))

    def _tokens(self, y: Tensor) -> Tensor:
        """As ``[batch, tokens, channels]``."""
        if self.geometry.is_conv:
            return y.flatten(2).transpose(1, 2)
        return y.reshape(y.shape[0] if y.ndim > 1 else 1, -1, y.shape[-1])

    def _untoken(self, tokens: Tensor, like: Tensor) -> Tensor:
        if self.geometry.is_conv:
            return tokens.transpose(1, 2).reshape(like.shape)
        return tokens.reshape(like.shape)


def _whole_input(delta: LowRankDelta, width: int) -> Tensor:
    """The down-projection for the layer's whole input; a slice's is surrounded by zeros."""
    down = delta.down.float()
    if down.shape[1] == width:
        return down
    padded = down.new_zeros(down.shape[0], width, *down.shape[2:])
    padded[:, delta.in_start : delta.in_start + down.shape[1]] = down
    return padded


def _scaled(hidden: Tensor, weight: Weight) -> Tensor:
    """The weight goes to the thin side of the product."""
    if isinstance(weight, Tensor):
        return hidden * weight.to(hidden.dtype).reshape(-1, 1, 1)
    return hidden if weight == 1.0 else hidden * weight


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _like(factor: Tensor, x: Tensor) -> Tensor:
    """The factor where and as the activations are; a no-op when core has loaded it there already."""
    return factor.to(device=x.device, dtype=x.dtype)
