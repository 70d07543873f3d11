"""Settings as inputs of nodes, and the pack's socket types."""

from .guidance import encoder_inputs, guidance_inputs, plan_from, reference_inputs
from .guidance_settings import advanced_inputs, prompt_inputs
from .linked import typed
from .router import policy_input, settings_inputs
from .sampling import sampling_inputs
from .sockets import CATEGORY, ENCODERS, LoraStackType, MetricEncoderType, ReferencesType, RoutingPlan

__all__ = [
    "CATEGORY",
    "ENCODERS",
    "LoraStackType",
    "MetricEncoderType",
    "ReferencesType",
    "RoutingPlan",
    "advanced_inputs",
    "encoder_inputs",
    "guidance_inputs",
    "plan_from",
    "policy_input",
    "prompt_inputs",
    "reference_inputs",
    "sampling_inputs",
    "settings_inputs",
    "typed",
]
