"""One model layer with its LoRA branches: factors joined once, deltas scored and added in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deltas import LowRankDelta
from .policies import Policy

ROLES = ("subject", "style")


@dataclass(frozen=True)
class Geometry:
    """How a layer maps its input to its output: a linear (``kernel`` empty) or a 1-3 dimensional convolution."""

    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def is_conv(self) -> bool:
        return bool(self.kernel)


@dataclass
class Decision:
    """What was decided in one call of one segment: ``[batch]`` scores and weights of both branches, on the device."""

    layer: str
    subject_score: Tensor
    style_score: Tensor
    subject_weight: Tensor
    style_weight: Tensor


@dataclass(frozen=True)
class Branch:
    """One role's share of a segment: which rows of the joined down-projection it uses, and its up-projection's name."""

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
        self.down = _frozen(torch.cat([self._whole_input(d) for _, _, d in ordered]).to(dtype))
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

    def _whole_input(self, delta: LowRankDelta) -> Tensor:
        width = self.geometry.in_features // self.geometry.groups
        down = delta.down.float()
        if down.shape[1] == width:
            return down
        padded = down.new_zeros(down.shape[0], width, *down.shape[2:])
        padded[:, delta.in_start : delta.in_start + down.shape[1]] = down
        return padded

    def fuse(self, x: Tensor, base: Tensor, policy: Policy, decisions: list[Decision]) -> Tensor:
        """Add the routed deltas to the layer's own output.

        Args:
            x: the layer's input, ``[batch, ..., in]`` or ``[batch, in, *space]`` for a convolution.
            base: its output without LoRAs, ``[batch, ..., out]`` or ``[batch, out, *space]``.
            policy: decides the branches' weights, per sample.
            decisions: what was decided is appended here; nothing is read back to the host.

        Returns:
            The fused output, shaped and typed as ``base``; ``base`` itself may be reused for it.
        """
        tokens = self._tokens(base)
        hidden = self._hidden(x)
        for segment in self.segments:
            part = tokens[..., segment.start : segment.stop]
            weights = self._decide(segment, part, hidden, policy, decisions)
            for role, branches in segment.branches.items():
                weight = weights.get(role)
                for branch in branches:
                    part.add_(self._delta(branch, hidden, weight))
        return self._untoken(tokens, base)

    def _decide(
        self, segment: Segment, part: Tensor, hidden: Tensor, policy: Policy, decisions: list[Decision]
    ) -> dict[str, Tensor | float]:
        if not segment.shared:
            return {}
        constant = policy.constant_weights()
        if constant is not None:
            return {role: w for role, w in zip(ROLES, constant, strict=True) if w != 1.0}
        stride = max(1, part.shape[1] // policy.max_tokens) if policy.max_tokens else 1
        base, sample = part[:, ::stride], hidden[:, ::stride]
        score = policy.score
        assert score is not None
        scores = [score(base, _sum([self._delta(b, sample) for b in segment.branches[role]])) for role in ROLES]
        w_subject, w_style = policy.weights(*scores)
        decisions.append(Decision(segment.name, scores[0], scores[1], w_subject, w_style))
        return {"subject": w_subject, "style": w_style}

    def _delta(self, branch: Branch, hidden: Tensor, weight: Tensor | float | None = None) -> Tensor:
        """``[batch, tokens, segment]`` of one branch; the weight goes to the thin side of the product."""
        z = hidden[..., branch.columns[0] : branch.columns[1]]
        if isinstance(weight, Tensor):
            z = z * weight.to(z.dtype).reshape(-1, 1, 1)
        elif weight is not None:
            z = z * weight
        return F.linear(z, _like(getattr(self, branch.up), z))

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


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _like(factor: Tensor, x: Tensor) -> Tensor:
    """The factor where and as the activations are; a no-op when core has loaded it there already."""
    return factor.to(device=x.device, dtype=x.dtype)
