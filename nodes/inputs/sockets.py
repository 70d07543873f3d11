"""The pack's place in the menu, and its socket types. All are part of saved workflows: append, never rename."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "LoRA Conductor"
LoraStackType = io.Custom("LORA_STACK")  # of other packs, too
RoutingPlan = io.Custom("ROUTING_PLAN")
MetricEncoderType = io.Custom("METRIC_ENCODER")
ReferencesType = io.Custom("GUIDANCE_REFERENCES")
ENCODERS = [io.ClipVision, MetricEncoderType]
