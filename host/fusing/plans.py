"""Routing plans: from a run to a file, and back onto a model."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher

from ...fusion.policies import POLICIES
from ...fusion.records import Plan, PlanError, Replay, loads
from ...fusion.routing import Refinement
from ..core import ConductorError
from .attach import attachment_of, set_policy
from .spec import check_plan

FOLDER = "routing_plans"


def write_plan(plan: Plan, prefix: str) -> str:
    """Save a plan in ComfyUI's output folder, under a name that is free.

    Returns:
        The file's path.

    Raises:
        ConductorError: it cannot be written there.
    """
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        path = Path(folder) / f"{name}_{counter:05}_.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(plan.dumps(), encoding="utf-8")
        os.replace(unfinished, path)
    except Exception as error:  # core refuses paths outside the output folder with a bare Exception
        raise ConductorError(
            f"filename_prefix: the plan cannot be saved as '{prefix}' ({error}). Choose another."
        ) from error
    return str(path)


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
    path = Path(folder_paths.get_annotated_filepath(name))
    try:
        return loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConductorError(f"Routing plan '{name}' cannot be opened ({error}). Pick another file.") from error
    except (PlanError, UnicodeDecodeError) as error:
        raise ConductorError(f"Routing plan '{name}': {error}. Pick a file that SaveRoutingPlan wrote.") from error


def replaying(model: ModelPatcher, plan: Plan) -> ModelPatcher:
    """A clone of the model whose LoRAs are fused as planned.

    Raises:
        ConductorError: the plan is of other LoRAs, or of a policy that cannot be repeated from it.
    """
    refinement = Refinement(**plan.refinement)
    if plan.calls:
        return set_policy(model, Replay(plan), refinement)
    settings = dict(plan.policy)
    policy = POLICIES.get(settings.pop("policy"))
    if policy is None:
        raise ConductorError(
            f"plan: it was made with '{plan.policy['policy']}', which has nothing to repeat. Set that policy in "
            "KLLayerRouter, or bake it."
        )
    spec = attachment_of(model).spec
    if spec is not None:
        check_plan(spec, plan)
    return set_policy(model, policy(**settings), refinement)
