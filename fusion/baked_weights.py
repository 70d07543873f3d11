"""With what weights the branches of a run go into a baked LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .policies import PassPolicy, Policy, StepContext
from .record import RoutingRecord
from .segments import ROLES


@dataclass(frozen=True)
class BakedWeights:
    """Weights of a run at one step, or their means over its decided steps.

    Attributes:
        shared: by segment name the weights of both roles; segments that were never decided are missing.
        alone: the weight of each role in segments that it has to itself.
    """

    shared: Mapping[str, Mapping[str, float]]
    alone: Mapping[str, float]


def baked_weights(policy: Policy, record: RoutingRecord, step: int | None) -> BakedWeights:
    """Weights from a run's record.

    Policies that run the model in passes turn off the resting LoRA's own layers too, which the record does not list:
    they get the share of passes that their LoRA is on in.

    Args:
        policy: the run's.
        record: what it decided.
        step: index from 0, or None for the mean over the steps.

    Raises:
        ValueError: the run has no such step, or decided nothing in it.
    """
    if step is not None and not 0 <= step < record.steps:
        raise ValueError(f"the run has {record.steps} steps, not {step + 1}")
    chosen = slice(None) if step is None else slice(step, step + 1)
    weights = record.weights[..., chosen]
    decided = [i for i in range(len(record.layers)) if not bool(weights[0, i].isnan().all())]
    if record.layers and not decided:
        raise ValueError(f"nothing was decided in step {record.steps if step is None else step + 1}")
    means = weights.nanmean(-1)
    shared = {record.layers[i]: {role: float(means[r, i]) for r, role in enumerate(ROLES)} for i in decided}
    alone = dict.fromkeys(ROLES, 1.0)
    if isinstance(policy, PassPolicy):
        contexts = [StepContext(i, record.steps) for i in range(record.steps)][chosen]
        passes = [policy.passes(context) for context in contexts]
        alone = {role: sum(p.count(role) / len(p) for p in passes) / len(passes) for role in ROLES}
    return BakedWeights(shared, alone)
