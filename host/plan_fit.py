"""Whether a routing plan belongs to the LoRAs on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..fusion.plan import Plan
from .errors import ConductorError

if TYPE_CHECKING:
    from .fusion_patch import FusionSpec


def check_plan(spec: FusionSpec, plan: Plan) -> None:
    """Whether a plan is of the LoRAs that are on a model: by content and role, whatever the files are called.

    Raises:
        ConductorError: it is not.
    """
    planned = sorted((lora["sha256"], lora["role"]) for lora in plan.loras)
    if planned != sorted((lora.digest, lora.role) for lora in spec.loras):
        wanted = " and ".join(f"{lora['role']} '{lora['name']}' ({lora['sha256'][:10]})" for lora in plan.loras)
        found = " and ".join(f"{lora.role} '{lora.name}' ({lora.digest[:10]})" for lora in spec.loras)
        raise ConductorError(
            f"plan: it was made for {wanted}, but the model carries {found}. Load the plan's own LoRA files, put "
            "KLLayerRouter after the last loader, or make a new plan."
        )
