"""What a plan says of policy and settings, once it is known that they can be had."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..policies import POLICIES, Policy
from ..records import Plan, PlanError, Replay
from ..records import checks as check
from .refinement import Refinement


def planned(plan: Plan) -> tuple[Policy, Refinement]:
    """The policy that repeats a plan, and its settings.

    Raises:
        PlanError: they are not settings of this release, or out of their range; or the plan is of a policy that cannot
            be repeated from its settings.
    """
    if plan.unsound is not None:
        raise PlanError(plan.unsound)
    refinement = _built(Refinement, plan.refinement, "refinement")
    name = check.text(check.entry(plan.policy, "policy", "policy"), "policy.policy")
    if plan.calls:
        check.number(plan.policy.get("emphasis", 1.0), "policy.emphasis", 0.0)
        if plan.frozen is not None and not refinement.freeze_after:
            raise PlanError("frozen says what the rest of the run got, but refinement.freeze_after says there was none")
        return Replay(plan), refinement
    if name not in POLICIES:
        raise PlanError(
            f"it was made with {check.shown(name)}, which has nothing to repeat. Set that policy in KLLayerRouter, or "
            "bake it"
        )
    settings = {key: value for key, value in plan.policy.items() if key != "policy"}
    return _built(POLICIES[name], settings, "policy"), refinement


def _built(kind: type[Any], settings: dict[str, Any], where: str) -> Any:
    known = {f.name: f.default for f in fields(kind) if f.init}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise PlanError(f"{where} has {check.shown(unknown[0])}, which is no setting of this release")
    values = {name: check.setting(value, known[name], f"{where}.{name}") for name, value in settings.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise PlanError(f"{where}: {error}") from None
