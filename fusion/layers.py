"""One model layer with its LoRA branches: factors joined once, deltas scored and added in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Delta
from .base_layer import BaseLayer
from .bypasses import Bypass, frozen, like
from .deltas import DeltaError, LowRankDelta
from .geometry import Geometry
from .segments import ROLES, SegmentDeltas

# A branch's weight: per sample [batch], one number for all, or 1.
Weight = Tensor | float
# Asked once per shared segment: (segment, base [batch, tokens, channels], delta of a role on every n-th token).
Decide = Callable[["Segment", Tensor, Callable[[str, int], Tensor]], dict[str, Weight]]


@dataclass(frozen=True)
class Branch:
    """One delta's share of a segment: its rows of the joined down-projection, and its up-projection's name."""

    columns: tuple[int, int]
    up: str


@dataclass(frozen=True)
class Segment:
    """A run of output channels that the same deltas write to: the unit of decision.

    Attributes:
        name: the layer's, with the channels if they are not all.
        start, stop: the channels.
        branches: by role, the low-rank deltas.
        bypasses: by role, indices of the other deltas among the layer's bypasses.
    """

    name: str
    start: int
    stop: int
    branches: dict[str, tuple[Branch, ...]] = field(default_factory=dict)
    bypasses: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for role in ROLES if self.branches.get(role) or self.bypasses.get(role))

    @property
    def shared(self) -> bool:
        return self.roles == ROLES


class FusedLayer(nn.Module):
    """The deltas of one layer, by role, ready to be added to its output.

    All low-rank down-projections are joined into one ``[total rank, in, *kernel]``; strength and scale are folded into
    the up-projections in float32 before they are rounded to ``dtype``. Deltas of other kinds are bypasses of their own.
    Fused weights (qkv) are cut at every slice border, so whole and sliced LoRAs can meet on one module.

    Args:
        name: the layer's name in the model, e.g. ``diffusion_model.double_blocks.0.img_attn.qkv``.
        geometry: of the layer.
        deltas: per delta its role ("subject" or "style"), strength and what it is.
        dtype: the dtype the layer computes in.
        read_weight: gives the base weight ``[out, in, *kernel]``, or None where it cannot be read. Only statistics and
            static merges of deltas that depend on it ask for it.
    """

    def __init__(
        self,
        name: str,
        geometry: Geometry,
        deltas: Sequence[tuple[str, float, Delta]],
        dtype: torch.dtype = torch.float32,
        read_weight: Callable[[], Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.geometry = geometry
        self.read_weight = read_weight
        # Subject first, then by position: branches then use neighbouring rows wherever the file allows it.
        deltas = sorted(deltas, key=lambda d: (ROLES.index(d[0]), d[2].out_start))
        thin = [(role, s, d) for role, s, d in deltas if isinstance(d, LowRankDelta)]
        other = [(role, s, d) for role, s, d in deltas if not isinstance(d, LowRankDelta)]
        self.bypasses = nn.ModuleList(delta.bypass(strength, strength, dtype) for _, strength, delta in other)
        downs = [_whole_input(d, geometry.in_features) for _, _, d in thin]
        self.down = frozen(torch.cat(downs).to(dtype)) if downs else None
        starts = [0]
        for _, _, delta in thin:
            starts.append(starts[-1] + delta.rank)
        borders = sorted({b for _, _, d in deltas for b in (d.out_start, d.out_stop)})
        self.segments: list[Segment] = []
        for start, stop in zip(borders, borders[1:], strict=False):
            whole = start == 0 and stop == geometry.out_features
            segment = Segment(name if whole else f"{name}[{start}:{stop}]", start, stop)
            for i, (role, strength, delta) in enumerate(thin):
                if delta.out_start <= start and stop <= delta.out_stop:
                    rows = delta.up[start - delta.out_start : stop - delta.out_start]
                    up_name = f"up_{start}_{i}"
                    self.register_parameter(up_name, frozen((rows.float() * (delta.scale * strength)).to(dtype)))
                    branch = Branch((starts[i], starts[i + 1]), up_name)
                    segment.branches[role] = (*segment.branches.get(role, ()), branch)
            for i, (role, _, beside) in enumerate(other):
                if beside.out_start <= start and stop <= beside.out_stop:
                    segment.bypasses[role] = (*segment.bypasses.get(role, ()), i)
            if segment.roles:
                self.segments.append(segment)

    def segment_deltas(self, segment: Segment) -> SegmentDeltas:
        """The factors of a segment by role, float32, on the CPU: for statistics and static merges.

        Deltas that depend on the base weight are taken as what they add to it as it is.

        Raises:
            DeltaError: a delta depends on the base weight, and that cannot be read.
        """
        down, up = {}, {}
        for role in segment.roles:
            pairs = [(getattr(self, b.up), self._rows(b)) for b in segment.branches.get(role, ())]
            pairs += [self._factors(self._bypass(i), segment) for i in segment.bypasses.get(role, ())]
            up[role] = torch.cat([pair[0].float().cpu() for pair in pairs], dim=1)
            down[role] = torch.cat([pair[1].float().cpu() for pair in pairs])
        return SegmentDeltas(segment.name, down, up)

    def _rows(self, branch: Branch) -> Tensor:
        assert self.down is not None
        return self.down[branch.columns[0] : branch.columns[1]]

    def _bypass(self, index: int) -> Bypass:
        bypass = self.bypasses[index]
        assert isinstance(bypass, Bypass)
        return bypass

    def _factors(self, bypass: Bypass, segment: Segment) -> tuple[Tensor, Tensor]:
        """A dense delta as exact factors, with the identity on its shorter side."""
        weight = None
        if not bypass.additive:
            weight = self.read_weight() if self.read_weight is not None else None
            if weight is None:
                raise DeltaError(
                    f"{self.name} has an adapter that depends on the base weight, which cannot be read in this model: "
                    "use a policy that does not look at weights, such as 'kl_soft' or 'sum'"
                )
            weight = weight.float().cpu()
        dense = bypass.dense(weight).cpu()[segment.start - bypass.start : segment.stop - bypass.start]
        whole = dense.new_zeros(dense.shape[0], *self.geometry.weight_shape[1:])
        whole[:, bypass.in_start : bypass.in_start + dense.shape[1]] = dense
        out, width = whole.flatten(1).shape
        if out <= width:
            return torch.eye(out), whole
        return whole.flatten(1), torch.eye(width).reshape(width, *whole.shape[1:])

    def fuse(self, x: Tensor, base: Tensor, decide: Decide, layer: BaseLayer | None = None) -> Tensor:
        """Add the routed deltas to the layer's own output.

        Args:
            x: the layer's input, ``[batch, ..., in]`` or ``[batch, in, *space]`` for a convolution.
            base: its output without LoRAs, ``[batch, ..., out]`` or ``[batch, out, *space]``.
            decide: gives the weights of a shared segment's branches; a segment of one role is added whole.
            layer: the layer without LoRAs; only deltas that depend on its weight need it.

        Returns:
            The fused output, shaped and typed as ``base``; ``base`` itself is reused for it.
        """
        tokens = self.geometry.tokens(base)
        hidden = None if self.down is None else self.geometry.tokens(self.geometry.project(x, like(self.down, x)))
        beside = self._beside(x, tokens, layer)
        for segment in self.segments:
            part = tokens[..., segment.start : segment.stop]
            weights: dict[str, Weight] = {}
            if segment.shared:
                weights = decide(segment, part, self._delta_of(segment, hidden, beside))
            for role in segment.roles:
                weight = weights.get(role, 1.0)
                if isinstance(weight, float) and weight == 0.0:
                    continue
                for branch in segment.branches.get(role, ()):
                    assert hidden is not None
                    part.add_(self._up(branch, _scaled(hidden[..., slice(*branch.columns)], weight)))
                for i in segment.bypasses.get(role, ()):
                    part.add_(_scaled(self._cut(beside[i], i, segment), weight))
        return self.geometry.untoken(tokens, base)

    def _beside(self, x: Tensor, tokens: Tensor, layer: BaseLayer | None) -> dict[int, Tensor]:
        """What each bypass adds, all before the base output is overwritten."""
        used = {i for segment in self.segments for indices in segment.bypasses.values() for i in indices}
        bypasses = {i: self._bypass(i) for i in sorted(used)}
        facts: dict[int, Any] = {}
        linear = None
        if any(not b.additive for b in bypasses.values()):
            if layer is None:
                raise ValueError(f"{self.name}: its deltas depend on the base layer, which was not given")
            facts = layer.facts(list(bypasses.values()), x)
            if any(b.needs_linear for b in bypasses.values()):
                linear = layer.without_bias(tokens, x)
        return {i: b(x, self.geometry, linear, facts.get(id(b)), layer) for i, b in bypasses.items()}

    def _cut(self, delta: Tensor, index: int, segment: Segment) -> Tensor:
        start = self._bypass(index).start
        return delta[..., segment.start - start : segment.stop - start]

    def _delta_of(
        self, segment: Segment, hidden: Tensor | None, beside: dict[int, Tensor]
    ) -> Callable[[str, int], Tensor]:
        def delta(role: str, stride: int) -> Tensor:
            parts = [self._cut(beside[i][:, ::stride], i, segment) for i in segment.bypasses.get(role, ())]
            for branch in segment.branches.get(role, ()):
                assert hidden is not None
                parts.append(self._up(branch, hidden[:, ::stride, slice(*branch.columns)]))
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            return total

        return delta

    def _up(self, branch: Branch, hidden: Tensor) -> Tensor:
        return F.linear(hidden, like(getattr(self, branch.up), hidden))


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
