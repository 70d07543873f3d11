"""Static policies as ordinary weight patches: core applies them once and the model runs at its own speed."""

from __future__ import annotations

from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ...fusion.adapters import DeltaError
from ...fusion.layers import FusedLayer, SegmentDeltas
from ...fusion.policies import SSRMerge, StaticPolicy
from ...fusion.roles import ROLES
from ...fusion.routing import name_of
from ..core import ConductorError, logger
from .order import Placed, placed_lora
from .spec import FusionSpec


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


def merged_patches(spec: FusionSpec) -> list[Placed]:
    """Core patches that do what the spec's static policy says, in the order in which they apply.

    The plain sum, and every layer that only one role touches, is handed to core exactly as its own loaders would.
    Other layers get one patch per segment, where the last of their LoRAs stands. A layer whose deltas cannot be had
    apart from a base weight that cannot be read keeps the plain sum too; the log names it.

    Raises:
        ConductorError: the policy has not been calibrated for these LoRAs.
    """
    policy = spec.policy
    assert isinstance(policy, StaticPolicy)
    merge = not policy.is_sum and spec.has_both_roles
    if merge and isinstance(policy, SSRMerge):
        _check_calibrated(policy, spec)
    patches: dict[Any, Any] = {}
    last: dict[str, int] = {}  # of the merged weights
    own = {layer.name for layer in spec.layers}
    for layer in spec.layers if merge else ():
        key = f"{layer.name}.weight"
        if any(segment.shared for segment in layer.segments):
            try:
                patches |= _layer_patches(policy, layer, key)
                own.remove(layer.name)
                last[key] = max(lora.behind.get(key, 0) for lora in spec.loras)
            except DeltaError as error:
                logger.warning("LoRA Conductor: %s leaves a layer as the plain sum, because %s", name_of(policy), error)
    return [Placed(patches, 1.0, last), *(placed_lora(lora, own) for lora in spec.loras)]


def _check_calibrated(policy: SSRMerge, spec: FusionSpec) -> None:
    if policy.calibration is None:
        raise ConductorError(
            "policy: ssr_merge has to be calibrated. Put KLLayerRouter after the LoRA loaders and connect "
            "subject_prompt, style_prompt and latent."
        )
    if policy.calibration.loras != spec.header["loras"]:
        raise ConductorError(
            "policy: ssr_merge was calibrated for other LoRAs or strengths. Put KLLayerRouter after the last LoRA "
            "loader."
        )


def _layer_patches(policy: StaticPolicy, layer: FusedLayer, key: str) -> dict[Any, WeightAdapterBase]:
    patches = {}
    for segment in layer.segments:
        whole = segment.start == 0 and segment.stop == layer.geometry.out_features
        target = key if whole else (key, (0, segment.start, segment.stop - segment.start))
        patches[target] = _segment_patch(policy, layer.segment_deltas(segment))
    return patches


def _segment_patch(policy: StaticPolicy, deltas: SegmentDeltas) -> WeightAdapterBase:
    roles = [role for role in ROLES if role in deltas.up]
    if len(roles) == 1:
        return low_rank_patch(deltas.up[roles[0]], deltas.down[roles[0]])
    merged = policy.merge(deltas) if policy.exact_factors else None
    if isinstance(merged, tuple):
        return low_rank_patch(*merged)
    subject, style = ROLES
    return MergedAdapter(
        set(),
        (deltas.down[subject], deltas.up[subject], deltas.down[style], deltas.up[style], policy, deltas.name),
    )


def low_rank_patch(up: Tensor, down: Tensor) -> LoRAAdapter:
    """Factors ``[out, rank]`` and ``[rank, in, *kernel]`` as a patch of core's."""
    return LoRAAdapter(set(), (up, down, None, None, None, None))
