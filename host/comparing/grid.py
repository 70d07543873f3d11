"""The same picture under several settings, by default policies and seeds, scored and side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...fusion.policies import Policy
from ...fusion.records import Plan
from ...fusion.routing import NAMED, heeds, name_of, with_settings
from ..core import ConductorError, SamplerCall, printable, sampled
from ..fusing import attachment_of, live_of, plan_of_latent, record_of_latent, set_policy
from .axes import Axis, Setting
from .score import Judge
from .unfinished import Unfinished


@dataclass(frozen=True)
class Cell:
    """One picture of the grid.

    Attributes:
        policy, seed: that made it.
        image: ``[height, width, 3]`` between 0 and 1.
        scores: cosine similarity to the reference of "subject" and of "style", as far as there are references.
        share: the subject's mean share; None where nothing was decided while sampling.
        plan: of the run.
        row, column: what was set for it.
        error: why there is no picture; the rest is empty then.
    """

    policy: str
    seed: int
    image: Tensor
    scores: dict[str, float]
    share: float | None
    plan: Plan
    row: Setting
    column: Setting
    error: str = ""

    @property
    def score(self) -> float | None:
        """Mean of the similarities."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


Place = tuple[Setting, Setting]
_unfinished: Unfinished[Place, Cell] = Unfinished()


def compare(model: ModelPatcher, rows: Axis, columns: Axis, call: SamplerCall, vae: Any, judge: Judge) -> list[Cell]:
    """All pictures, row by row. What is on neither axis is the model's own, as its router was set, or the ``call``'s.

    A cell that ends in an error says so in its place, and the others are made. Where the user stops it, the finished
    cells are kept for the next call with the same inputs.

    Args:
        model: with LoRAs of ours.
        rows, columns: two different settings: fields of ``call``, or names of :func:`with_settings`.
        call: KSampler's inputs.
        vae: decodes the pictures.
        judge: scores them.

    Raises:
        ConductorError: the model carries no LoRAs of ours, both axes are the same, one of them would change nothing,
            or a policy cannot fuse these LoRAs.
        Exception: no cell could be made: why the first could not.
    """
    sampling = {field.name for field in fields(call)}
    own = live_of(model)[1].policy
    _check(rows, columns, own, sampling)
    in_order = list(product(rows.settings, columns.settings))
    places = in_order
    if rows.name in sampling:  # column by column: a change of the model costs more than one of the sampling
        places = [(row, column) for column, row in product(columns.settings, rows.settings)]
    asked = (rows, columns, *(getattr(call, name) for name in sorted(sampling)), vae, *judge.given)
    maker = _Maker(model, own, call, sampling, vae, judge)
    cells = _unfinished.make_all(
        model, asked, places, maker.cell, lambda place, error: _failed(place, own, call.seed, error)
    )
    return [cells[place] for place in in_order]


class _Maker:
    """Makes cells, and changes the model from one to the next only where it must."""

    def __init__(
        self, model: ModelPatcher, own: Policy, call: SamplerCall, sampling: set[str], vae: Any, judge: Judge
    ) -> None:
        self._model, self._own, self._call, self._sampling = model, own, call, sampling
        self._vae, self._judge = vae, judge
        self._refinement = attachment_of(model).refinement
        self._routed = model
        self._routing: dict[str, Any] | None = None

    def cell(self, place: Place) -> Cell:
        changes = {setting.name: setting.value for setting in place}
        asked = {name: value for name, value in changes.items() if name not in self._sampling}
        if asked != self._routing:
            self._routing = None  # until it is
            self._routed = set_policy(self._model, *with_settings(self._own, self._refinement, asked))
            self._routing = asked
        used = replace(self._call, **{name: value for name, value in changes.items() if name in self._sampling})
        samples = sampled(self._routed, used)["samples"]
        image = first_picture(self._vae, samples)
        share = record_of_latent(self._routed, samples).subject_share()
        policy, plan = changes.get("policy", name_of(self._own)), plan_of_latent(self._routed, samples)
        return Cell(policy, used.seed, image, self._judge.scores(image), share, plan, *place)


def first_picture(vae: Any, samples: Any) -> Tensor:
    """``[height, width, 3]`` on the CPU: of a batch or a film, the first one."""
    image = vae.decode(samples)
    return image.reshape(-1, *image.shape[-3:])[0, ..., :3].float().cpu()


def _failed(place: Place, own: Policy, seed: int, error: Exception) -> Cell:
    changes = {setting.name: setting.value for setting in place}
    policy, seed = changes.get("policy", name_of(own)), changes.get("seed", seed)
    said = printable(str(error) or type(error).__name__)
    return Cell(policy, seed, torch.zeros(0, 0, 3), {}, None, Plan((), {}, {}, (), (), ()), *place, said)


def _check(rows: Axis, columns: Axis, own: Policy, sampling: Collection[str]) -> None:
    if rows.name == columns.name:
        raise ConductorError(
            f"columns: '{columns.name}' is in the rows already. Choose another setting for one of them."
        )
    policies = [NAMED[s.value] for axis in (rows, columns) if axis.name == "policy" for s in axis.settings] or [own]
    for axis in (rows, columns):
        if axis.name in (*sampling, "policy") or any(heeds(policy, axis.name) for policy in policies):
            continue
        names = ", ".join(map(name_of, policies))
        raise ConductorError(
            f"{axis.field}: '{axis.name}' would change nothing, as it is no setting of {names}. Choose another, or set "
            "a policy that has it in KLLayerRouter."
        )


def best_of(cells: Sequence[Cell]) -> Cell:
    """Of those with a picture, the cell most like its references; without any, the one that shares most evenly."""

    def key(cell: Cell) -> float:
        if cell.score is not None:
            return cell.score
        return -1.0 if cell.share is None else -abs(cell.share - 0.5)

    return max((cell for cell in cells if not cell.error), key=key)
