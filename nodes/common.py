"""What all our nodes share."""

from comfy_api.latest import io

CATEGORY = "LoRA Conductor"
RoutingPlan = io.Custom("ROUTING_PLAN")
