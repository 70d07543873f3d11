"""One model layer with its LoRA branches: factors joined once, deltas added in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import BaseLayer, Bypass, Delta, DeltaError, Geometry, LowRankDelta, frozen, like
from ..roles import ROLES
from .additions import add_product, by_head, times_pair, weighted
from .basis import Bases, Basis, orthonormal
from .joint import Joint
from .pairing import Pairing
from .probe import Probe
from .rows import Rows
from .segment import Part, Segment, SegmentDeltas, Weight

# Asked once per segment; gives the weights of its branches by role, 1 where a role is missing; or of both roles as one
# float32 tensor [batch, 2].
Decide = Callable[[Segment, Probe], dict[str, Weight] | Tensor]
# Asked first where neighbouring segments can be decided at once: both weights of each, float32 [segments, batch or 1,
# 2]; None where they have to be asked for one by one.
DecideTogether = Callable[[Joint], Tensor | None]
SILENCE = 1e-18  # its square, too, is a number in float32
LEAST_HALF = 6e-8  # the least number of float16
MOST_PADDED = 1.5  # times as many rows as without zeros


class _Shared(list[tuple[str, float, LowRankDelta]]):
    """Deltas as the files have them, copied: tensors that were read lie in the file, which may change. They are never
    written to: a copy of the layer for another device shares them."""

    def __deepcopy__(self, memo: Any) -> _Shared:
        return self


class FusedLayer(nn.Module):
    """The deltas of one layer, by role, ready to be added to its output.

    All low-rank down-projections are joined into one ``[total rank, in, *kernel]``, and the up-projections of each
    segment into one ``[channels, rank]``; strength and scale are folded into those in float32 before they are rounded
    to ``dtype``. Fused weights (qkv) are cut where the model cuts them, and at every slice border besides, so that
    whole and sliced LoRAs meet on one module, and a whole one is decided as a sliced one is. Each segment has
    down-projections of its own, in a basis with orthonormal columns in the up-projections: how loud a branch is can
    then be read off the hidden features. Deltas of other kinds are bypasses of their own.

    Args:
        name: the layer's name in the model, e.g. ``diffusion_model.double_blocks.0.img_attn.qkv``.
        geometry: of the layer.
        deltas: per delta its role ("subject" or "style"), strength and what it is.
        dtype: the dtype the layer computes in.
        read_weight: gives the base weight ``[out, in, *kernel]``, or None where it cannot be read. Only statistics and
            static merges of deltas that depend on it ask for it.
        parts: what the output's channels are in the model, from the first to the last; empty where that is not known.
        of_text: whether its tokens are those of a text, and no picture.
        bases: of deltas that may have been met before.
    """

    def __init__(
        self,
        name: str,
        geometry: Geometry,
        deltas: Sequence[tuple[str, float, Delta]],
        dtype: torch.dtype = torch.float32,
        read_weight: Callable[[], Tensor | None] | None = None,
        parts: Sequence[Part] = (),
        of_text: bool = False,
        bases: Bases | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.geometry = geometry
        self.read_weight = read_weight
        borders = {b for _, _, d in deltas for b in (d.out_start, d.out_stop)}
        borders |= {part.start for part in parts}
        whole = [
            (
                role,
                s,
                replace(d, down=d.down.detach().clone(), up=d.up.detach().clone())
                if isinstance(d, LowRankDelta)
                else d,
            )
            for role, s, d in deltas
        ]
        # By position, then subject first: the rows of a segment, and of segments one after the other, are neighbours.
        cut = [(role, s, piece) for role, s, d in whole for piece in _pieces(d, borders)]
        cut.sort(key=lambda d: (d[2].out_start, ROLES.index(d[0])))
        thin = [(role, s, d) for role, s, d in cut if isinstance(d, LowRankDelta)]
        other = [(role, s, d) for role, s, d in cut if not isinstance(d, LowRankDelta)]
        self.bypasses = nn.ModuleList(delta.bypass(strength, strength, dtype) for _, strength, delta in other)
        self._thin = _Shared(thin)
        self.segments: list[Segment] = []
        downs: list[Tensor] = []  # of all segments so far, one after the other
        ups: dict[int, Tensor] = {}
        joined = 0
        for start, stop in zip(sorted(borders), sorted(borders)[1:], strict=False):
            own: dict[str, list[tuple[float, LowRankDelta]]] = {role: [] for role in ROLES}
            beside: dict[str, tuple[int, ...]] = {}
            for role, strength, low in thin:
                if low.out_start == start:
                    own[role].append((strength, low))
            for i, (role, _, dense) in enumerate(other):
                if dense.out_start <= start and stop <= dense.out_stop:
                    beside[role] = (*beside.get(role, ()), i)
            if not beside and not any(own.values()):
                continue
            every = start == 0 and stop == geometry.out_features
            part = next((part for part in parts if part.start <= start and stop <= part.stop), None)
            width = part.head_width if part is not None and (start - part.start) % (part.head_width or 1) == 0 else None
            ranks = {role: sum(low.rank for _, low in its) for role, its in own.items() if its}
            padded = ranks if beside else _padded(ranks)
            energies: dict[str, float] = {}
            rows: dict[str, tuple[int, ...]] = {}
            turned = []
            for role, rank in padded.items():
                down = torch.cat([_whole_input(low, geometry.in_features) for _, low in own[role]])
                up, down, energies[role] = _turned(own[role], down, dtype, bases)
                turned.append(F.pad(up, (0, rank - ranks[role])))
                downs += [down, down.new_zeros(rank - ranks[role], *down.shape[1:])]
                rows[role] = tuple(range(joined, joined + rank))
                joined += rank
            if turned:
                ups[start] = torch.cat(turned, dim=1)
            present = [(role, s) for role, s, d in cut if d.out_start <= start and stop <= d.out_stop]
            segment = Segment(
                name if every else f"{name}[{start}:{stop}]",
                start,
                stop,
                rows,
                beside,
                width if width and (stop - start) % width == 0 else None,
                None if part is None else part.group,
                of_text,
                _pairing(present, {} if beside else energies),
            )
            self.segments.append(segment)
        self.runs = list(_runs(self.segments))
        for run in self.runs:
            if run[0].rows:
                joint_up = torch.cat([ups[segment.start] for segment in run])
                self.register_parameter(f"up_{run[0].start}", frozen(joint_up))
        self._run_of = {segment.start: run[0].start for run in self.runs for segment in run}
        self.down = frozen(torch.cat(downs).to(dtype)) if downs else None
        self.faint = frozen(self._faint(joined, dtype)) if downs else None

    def _faint(self, rank: int, dtype: torch.dtype) -> Tensor:
        """What is added to hidden features so that none is exactly silent: log ratios are then finite. The same for
        both roles together, and lost in rounding wherever there is anything to hear."""
        faint = torch.zeros(rank)
        for segment in self.segments:
            for role in segment.roles if segment.shared else ():
                if role in segment.rows:
                    loud = LEAST_HALF if dtype == torch.float16 else SILENCE * segment.rank(role) ** -0.5
                    faint[list(segment.rows[role])] = loud
        return faint.to(dtype)

    def up(self, segment: Segment) -> Tensor:
        """The joined up-projections of a segment ``[channels, rank]``: the subject's columns, then the style's."""
        run = self._run_of[segment.start]
        return self.get_parameter(f"up_{run}")[segment.start - run : segment.stop - run]

    def segment_deltas(self, segment: Segment) -> SegmentDeltas:
        """The factors of a segment by role as the files have them, float32, on the CPU: for statistics and merges.

        Deltas that depend on the base weight are taken as what they add to it as it is.

        Raises:
            DeltaError: a delta depends on the base weight, and that cannot be read.
        """
        down, up = {}, {}
        for role in segment.roles:
            pairs = [
                (
                    low.up[segment.start - low.out_start : segment.stop - low.out_start].float()
                    * (low.scale * strength),
                    _whole_input(low, self.geometry.in_features),
                )
                for its, strength, low in self._thin
                if its == role and low.out_start <= segment.start and segment.stop <= low.out_stop
            ]
            pairs += [self._factors(self._bypass(i), segment) for i in segment.bypasses.get(role, ())]
            up[role] = torch.cat([pair[0].float().cpu() for pair in pairs], dim=1)
            down[role] = torch.cat([pair[1].float().cpu() for pair in pairs])
        return SegmentDeltas(segment.name, down, up)

    @cached_property
    def _is_measured(self) -> bool:
        return any(segment.rows and segment.shared for segment in self.segments)

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

    def fuse(
        self,
        x: Tensor,
        base: Tensor,
        decide: Decide,
        layer: BaseLayer | None = None,
        batch_rows: int = 0,
        together: DecideTogether | None = None,
    ) -> Tensor:
        """Add the routed deltas to the layer's own output.

        Args:
            x: the layer's input, ``[batch, ..., in]`` or ``[batch, in, *space]`` for a convolution.
            base: its output without LoRAs, ``[batch, ..., out]`` or ``[batch, out, *space]``.
            decide: gives the weights of a segment's branches.
            layer: the layer without LoRAs; only deltas that depend on its weight need it.
            batch_rows: of the model call; 0 where the first dimension is the batch.
            together: gives those of neighbouring segments at once, where it can.

        Returns:
            The fused output, shaped and typed as ``base``; ``base`` itself is reused for it.
        """
        rows, output = Rows.of(base, batch_rows, self.geometry.is_conv), base
        if not self.geometry.is_conv:
            x, base = rows.arranged(x), rows.arranged(base)
        tokens = self.geometry.tokens(base)
        hidden = None
        if self.down is not None and self.faint is not None:
            hidden = self.geometry.tokens(
                self.geometry.project(x, like(self.down, x), bias=like(self.faint, x) if self._is_measured else None)
            )
        beside = self._beside(x, tokens, layer)
        if self.geometry.is_conv and rows is Rows.MIXED:
            tokens = rows.arranged(tokens)
            hidden = None if hidden is None else rows.arranged(hidden)
            beside = {i: rows.arranged(added) for i, added in beside.items()}
        space = tuple(base.shape[2:]) if self.geometry.is_conv else None
        for run in self.runs:
            if together is not None and len(run) > 1 and hidden is not None:
                joint = self._joint(run, tokens, hidden, rows is Rows.MIXED)
                pairs = together(joint)
                if pairs is not None:
                    joint.add(pairs)
                    continue
            for segment in run:
                part = tokens[..., segment.start : segment.stop]
                probe = self._probe(segment, part, self._hidden(segment, hidden), beside, space)
                probe.mixed = rows is Rows.MIXED
                self._add(part, probe, decide(segment, probe))
        if self.geometry.is_conv:
            return self.geometry.untoken(tokens.reshape(len(base), -1, tokens.shape[-1]), base)
        return rows.restored(self.geometry.untoken(tokens, base), output)

    def _probe(
        self,
        segment: Segment,
        part: Tensor,
        hidden: Tensor | None,
        beside: dict[int, Tensor],
        space: tuple[int, ...] | None,
    ) -> Probe:
        up = self.up(segment) if segment.rows else None
        own = {}
        for i in (i for indices in segment.bypasses.values() for i in indices):
            start = self._bypass(i).start
            own[i] = beside[i][..., segment.start - start : segment.stop - start]
        return Probe(segment, part, hidden, up, own, space)

    def _joint(self, run: Sequence[Segment], tokens: Tensor, hidden: Tensor, mixed: bool) -> Joint:
        start, stop = run[0].start, run[-1].stop
        columns = slice(run[0].span[0], run[-1].span[1])
        return Joint(run, tokens[..., start:stop], hidden[..., columns], self.get_parameter(f"up_{start}"), mixed)

    def _hidden(self, segment: Segment, hidden: Tensor | None) -> Tensor | None:
        """The segment's columns of the joined hidden features."""
        if not segment.rows or hidden is None:
            return None
        return hidden[..., slice(*segment.span)]

    def _add(self, part: Tensor, probe: Probe, weights: dict[str, Weight] | Tensor) -> None:
        """Add both branches to a part of the output, in place, rounding once."""
        segment, hidden = probe.segment, probe.hidden
        if isinstance(weights, Tensor):
            if hidden is not None and not segment.bypasses and len(segment.rows) == len(ROLES):
                ranks = [segment.rank(role) for role in ROLES]
                add_product(part, times_pair(hidden, weights, ranks, part.dtype), like(self.up(segment), part))
                return
            weights = {role: weights[:, i, None, None] for i, role in enumerate(ROLES)}
        off = {role for role, weight in weights.items() if isinstance(weight, float) and weight == 0.0}
        heads = {role for role, w in weights.items() if isinstance(w, Tensor) and w.shape[-1] > 1}
        joined = [role for role in ROLES if role in segment.rows and role not in off | heads]
        if joined and hidden is not None:
            up = like(self.up(segment), part)
            if len(joined) < len(segment.rows):
                hidden, up = hidden[..., segment.columns(joined[0])], up[:, segment.columns(joined[0])]
            hidden = weighted(hidden, [(weights.get(role, 1.0), segment.rank(role)) for role in joined])
            add_product(part, hidden.to(part.dtype), up)
        for role in segment.roles:
            if role in off:
                continue
            if role in heads:
                part.add_(by_head(probe.delta(role), weights[role]))
                continue
            for i in segment.bypasses.get(role, ()):
                part.add_(weighted(probe.beside[i], [(weights.get(role, 1.0), part.shape[-1])]))

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


def _padded(ranks: Mapping[str, int]) -> dict[str, int]:
    """Ranks of both roles with as many rows of zeros as make them alike, where those are few enough: both roles are
    then measured and weighted at once, in three operations less."""
    most = max(ranks.values(), default=0)
    alike = len(ranks) == len(ROLES) and len(ROLES) * most <= MOST_PADDED * sum(ranks.values())
    return dict.fromkeys(ranks, most) if alike else dict(ranks)


def _turned(
    own: Sequence[tuple[float, LowRankDelta]], down: Tensor, dtype: torch.dtype, bases: Bases | None
) -> tuple[Tensor, Tensor, float]:
    """A role's factors in an orthonormal basis, and the energy of their product.

    The basis does not hang on how strong a LoRA is, only several LoRAs' on how strong they are beside each other.

    Args:
        own: its deltas of one segment with their strengths.
        down: their down-projections, one after the other, float32.
        dtype: of the up-projection.
        bases: those met before.
    """
    first = next((strength for strength, _ in own if strength), 1.0)  # all of them 0: nothing is added
    parts = [(strength / first, low) for strength, low in own]

    def make() -> Basis:
        return orthonormal(torch.cat([low.up.float() * (low.scale * share) for share, low in parts], dim=1), dtype)

    known = bases is not None and all(low.origin is not None for _, low in parts)
    key = (dtype, *((low.origin, low.out_start, low.out_stop, low.scale, share) for share, low in parts))
    basis = bases.of(key, make) if bases is not None and known else make()
    mixed = basis.down(down)
    size = float(torch.linalg.vector_norm(mixed, dtype=torch.float64)) * abs(first)
    return basis.turned, mixed * first, size * size


def _pairing(present: Sequence[tuple[str, float]], energies: Mapping[str, float]) -> Pairing:
    """How the roles of a segment's deltas meet, given each delta's role and strength, and the roles' energies."""
    subject, style = (math.hypot(*(s for role, s in present if role == its)) for its in ROLES)
    if not subject or not style:
        return Pairing((subject, style), None)
    if len(energies) < len(ROLES):
        return Pairing((subject, style), None)
    unit = [max(energies[role], 1e-30) / s**2 for role, s in zip(ROLES, (subject, style), strict=True)]
    return Pairing((subject, style), math.log(unit[0] / unit[1]))


def _pieces(delta: Delta, borders: Iterable[int]) -> Iterator[Delta]:
    """A low-rank delta cut at the borders within it; others are cut when they are added."""
    if not isinstance(delta, LowRankDelta):
        yield delta
        return
    within = sorted({b for b in borders if delta.out_start < b < delta.out_stop} | {delta.out_start, delta.out_stop})
    for start, stop in zip(within, within[1:], strict=False):
        up = delta.up[start - delta.out_start : stop - delta.out_start]
        yield replace(delta, up=up, out_start=start)


def _runs(segments: Sequence[Segment]) -> Iterator[tuple[Segment, ...]]:
    """Segments one after the other that can be decided together."""
    run: list[Segment] = []
    for segment in segments:
        alike = run and run[-1].stop == segment.start and segment.is_low_rank and run[-1].is_low_rank
        if not alike or not _meet_alike(run[-1], segment):
            if run:
                yield tuple(run)
            run = []
        run.append(segment)
    if run:
        yield tuple(run)


def _meet_alike(one: Segment, other: Segment) -> bool:
    """Whether what is known of two segments leaves no difference but what is measured in them."""
    ranks = all(one.rank(role) == other.rank(role) for role in ROLES)
    return ranks and one.pairing.strengths == other.pairing.strengths and one.pairing.in_kind == other.pairing.in_kind


def _whole_input(delta: LowRankDelta, width: int) -> Tensor:
    """The down-projection for the layer's whole input; a slice's is surrounded by zeros."""
    down = delta.down.float()
    if down.shape[1] == width:
        return down
    padded = down.new_zeros(down.shape[0], width, *down.shape[2:])
    padded[:, delta.in_start : delta.in_start + down.shape[1]] = down
    return padded
