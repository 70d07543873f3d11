"""Static policies as ordinary weight patches: core applies them once and the model runs at its own speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ..fusion.policies import StaticPolicy
from ..fusion.segments import ROLES, SegmentDeltas

if TYPE_CHECKING:
    from .fusion_patch import FusionSpec

Patches = list[tuple[dict[Any, Any], float]]


class MergedAdapter(WeightAdapterBase):
    """A dense merge of two LoRAs that is computed when core patches the weight, so that it never lies in memory whole.

    ``weights`` is ``(down_c, up_c, down_s, up_s, policy, name)``: core moves an adapter's tensors around by rebuilding
    it from its ``weights``.
    """

    name = "lora_conductor_merge"

    def __init__(self, loaded_keys: set[str], weights: tuple) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Add the merge to the weight (core's interface)."""
        down_c, up_c, down_s, up_s, policy, name = self.weights
        subject, style = ROLES
        moved = [t.to(device=weight.device, dtype=torch.float32) for t in (down_c, up_c, down_s, up_s)]
        segment = SegmentDeltas(name, {subject: moved[0], style: moved[2]}, {subject: moved[1], style: moved[3]})
        weight += function((strength * policy.merge(segment)).reshape(weight.shape).to(weight.dtype))
        return weight


def merged_patches(spec: FusionSpec) -> Patches:
    """Core patches, with their strengths, that do what the spec's static policy says.

    The plain sum is handed to core exactly as its own loaders would; other merges get one patch per shared segment,
    and what only one LoRA touches gets that LoRA's own.
    """
    policy = spec.policy
    assert isinstance(policy, StaticPolicy)
    if policy.is_sum or not spec.has_both_roles:
        return [
            ({target.core_key: _own(patch) for target, patch in lora.core_patches.items()}, lora.strength)
            for lora in spec.loras
        ]
    patches: dict[Any, Any] = {}
    for layer in spec.layers:
        for segment in layer.segments:
            deltas = layer.segment_deltas(segment)
            whole = segment.start == 0 and segment.stop == layer.geometry.out_features
            key = f"{layer.name}.weight"
            target = key if whole else (key, (0, segment.start, segment.stop - segment.start))
            patches[target] = _segment_patch(policy, deltas)
    return [(patches, 1.0)]


def _own(patch: WeightAdapterBase) -> WeightAdapterBase:
    """A copy of a patch that only this clone holds: told apart from the same file loaded by somebody else."""
    return type(patch)(patch.loaded_keys, patch.weights)


def _segment_patch(policy: StaticPolicy, deltas: SegmentDeltas) -> WeightAdapterBase:
    roles = [role for role in ROLES if role in deltas.up]
    if len(roles) == 1:
        return _low_rank(deltas.up[roles[0]], deltas.down[roles[0]])
    merged = policy.merge(deltas) if policy.exact_factors else None
    if isinstance(merged, tuple):
        return _low_rank(*merged)
    subject, style = ROLES
    return MergedAdapter(
        set(),
        (deltas.down[subject], deltas.up[subject], deltas.down[style], deltas.up[style], policy, deltas.name),
    )


def _low_rank(up: Tensor, down: Tensor) -> LoRAAdapter:
    return LoRAAdapter(set(), (up, down, None, None, None, None))
