"""The same picture under several settings, by default policies and seeds, scored and side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...fusion.policies import Policy
from ...fusion.records import Plan
from ...fusion.routing import NAMED, heeds, name_of, with_settings
from ..core import ConductorError, SamplerCall, sampled
from ..fusing import attachment_of, live_of, plan_of_latent, record_of_latent, set_policy
from .axes import Axis, Setting
from .score import Judge


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
    """

    policy: str
    seed: int
    image: Tensor
    scores: dict[str, float]
    share: float | None
    plan: Plan
    row: Setting
    column: Setting

    @property
    def score(self) -> float | None:
        """Mean of the similarities."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


def compare(model: ModelPatcher, rows: Axis, columns: Axis, call: SamplerCall, vae: Any, judge: Judge) -> list[Cell]:
    """All pictures, row by row. What is on neither axis is the model's own, as its router was set, or the ``call``'s.

    Args:
        model: with LoRAs of ours.
        rows, columns: two different settings: fields of ``call``, or names of :func:`with_settings`.
        call: KSampler's inputs.
        vae: decodes the pictures.

    Raises:
        ConductorError: the model carries no LoRAs of ours, both axes are the same, one of them would change nothing,
            or a policy cannot fuse these LoRAs.
    """
    sampling = {field.name for field in fields(call)}
    own = live_of(model)[1].policy
    _check(rows, columns, own, sampling)
    refinement = attachment_of(model).refinement
    in_order = list(product(rows.settings, columns.settings))
    places = in_order
    if rows.name in sampling:  # column by column: a change of the model costs more than one of the sampling
        places = [(row, column) for column, row in product(columns.settings, rows.settings)]
    routed = model
    routing: dict[str, Any] | None = None
    cells = {}
    for place in places:
        comfy.model_management.throw_exception_if_processing_interrupted()
        changes = {setting.name: setting.value for setting in place}
        asked = {name: value for name, value in changes.items() if name not in sampling}
        if asked != routing:
            routed, routing = set_policy(model, *with_settings(own, refinement, asked)), asked
        used = replace(call, **{name: value for name, value in changes.items() if name in sampling})
        samples = sampled(routed, used)["samples"]
        image = vae.decode(samples)
        image = image.reshape(-1, *image.shape[-3:])[0, ..., :3].float().cpu()
        share = record_of_latent(routed, samples).subject_share()
        policy, plan = changes.get("policy", name_of(own)), plan_of_latent(routed, samples)
        cells[place] = Cell(policy, used.seed, image, judge.scores(image), share, plan, *place)
    return [cells[place] for place in in_order]


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
    """The cell most like its references; without references, the one that shares most evenly."""

    def key(cell: Cell) -> float:
        if cell.score is not None:
            return cell.score
        return -1.0 if cell.share is None else -abs(cell.share - 0.5)

    return max(cells, key=key)
