"""Routing plans: from a run to a file, and back onto a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...fusion.records.plan import MOST_BYTES, Plan, PlanError, loads
from ...fusion.routing import planned
from ..core import ConductorError, annotated_path, place_of, write_new
from .attach import set_policy
from .results import live_of

FOLDER = "routing_plans"
CHUNK = 1 << 20  # bytes hashed at a time


def plan_of_latent(model: ModelPatcher, samples: Tensor) -> Plan:
    """The plan of the run in which the model made these samples.

    Raises:
        ConductorError: the model carries no LoRAs of ours, or did not make the latent.
    """
    live, spec = live_of(model)
    if live is None:
        return Plan(**spec.header, sigmas=(), layers=(), calls=())
    return live.results_of(samples)[1]


def write_plan(plan: Plan, prefix: str) -> str:
    """Save a plan in ComfyUI's output folder, under a name that is free.

    Returns:
        The file's path.

    Raises:
        ConductorError: it cannot be written there, or holds what no file may hold.
    """
    place = place_of(prefix)
    try:
        text = plan.dumps()
        return str(write_new(place, ".json", lambda unfinished: unfinished.write_text(text, encoding="utf-8")))
    except OSError as error:
        raise ConductorError(
            f"filename_prefix: the plan cannot be saved as '{prefix}' ({error}). Choose another name, and make sure "
            "that there is room on the disk."
        ) from error
    except PlanError as error:
        raise ConductorError(f"latent: its run cannot be planned again: {error}. Was the picture black?") from error


def plan_files() -> list[str]:
    """Names of the plans in the output folder and of JSON files in the input folder, as core annotates them."""
    output = Path(folder_paths.get_output_directory())
    saved = sorted((output / FOLDER).rglob("*.json")) if (output / FOLDER).is_dir() else []
    given = sorted(Path(folder_paths.get_input_directory()).glob("*.json"))
    return [
        *(f"{file.relative_to(output).as_posix()} [output]" for file in saved),
        *(f"{file.name} [input]" for file in given),
    ]


def read_plan(name: str) -> Plan:
    """Read a plan by a name from :func:`plan_files`.

    Raises:
        ConductorError: there is no such file, or it is no plan.
    """
    path = annotated_path(name, "file: routing plan")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PlanError(f"it is too large: more than {MOST_BYTES / 1e6:.0f} MB")
        plan = loads(path.read_bytes())
        planned(plan)
    except OSError as error:
        raise ConductorError(f"Routing plan '{name}' cannot be opened ({error}). Pick another file.") from error
    except PlanError as error:
        raise ConductorError(f"Routing plan '{name}': {error}. Pick a file that SaveRoutingPlan wrote.") from error
    return plan


def fingerprint_of(name: Any) -> str:
    """Changes with the content of a plan's file. Without one, a value of its own: reading it will say what is wrong."""
    try:
        with open(annotated_path(name, "file: routing plan"), "rb") as file:
            found = hashlib.sha256()
            for part in iter(lambda: file.read(CHUNK), b""):
                found.update(part)
            return found.hexdigest()
    except (ConductorError, OSError):
        return "not there"


def replaying(model: ModelPatcher, plan: Any) -> ModelPatcher:
    """A clone of the model whose LoRAs, those on it and those still to come, are fused as planned.

    Raises:
        ConductorError: it is no plan, one of other LoRAs or layers, or of a policy that cannot be repeated from it.
    """
    if not isinstance(plan, Plan):
        raise ConductorError(
            f"plan: a {type(plan).__name__} is no routing plan. Connect LoadRoutingPlan or SaveRoutingPlan."
        )
    try:
        policy, refinement = planned(plan)
    except PlanError as error:
        raise ConductorError(f"plan: {error}.") from error
    return set_policy(model, policy, refinement, plan=plan)
