"""KLLayerRouter: how the LoRAs on a model are fused."""

from __future__ import annotations

from comfy_api.latest import io

from ..fusion.policies import POLICIES, RECOMMENDED, KLSoft, Policy
from ..host.fusion_patch import set_policy
from .common import CATEGORY

CHOICES = ["recommended", *POLICIES]


class KLLayerRouter(io.ComfyNode):
    """Sets the policy by which a subject and a style LoRA are fused in every layer they share."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KLLayerRouter",
            display_name="KL Layer Router",
            category=CATEGORY,
            description=(
                "Sets how the subject and the style LoRA on the model are fused, layer by layer and step by step. "
                "May stand before or after the loaders. "
                "recommended: what our benchmark favours. paper: the LoRA that moves a layer further takes it whole "
                "(arXiv 2602.15539). sum: plain stacking. kl_soft: a soft choice, set by the knobs below."
            ),
            search_aliases=["lora router", "lora fusion policy", "k-lora", "dynamic lora fusion"],
            inputs=[
                io.Model.Input("model", tooltip="A model with, or on its way to, DualLoRADynamicLoader."),
                io.Combo.Input(
                    "policy",
                    options=CHOICES,
                    default="recommended",
                    tooltip="Who gets a layer that both LoRAs touch. Only kl_soft reads the settings below.",
                ),
                io.Float.Input(
                    "temperature",
                    default=KLSoft().temperature,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    tooltip="kl_soft: how soft the choice is. Small is nearly all-or-nothing, large shares evenly.",
                ),
                io.Float.Input(
                    "balance",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    tooltip="kl_soft: leaning. Above 0 favours the subject, below 0 the style, 0 neither.",
                ),
            ],
            outputs=[io.Model.Output("MODEL", tooltip="The model with this policy set.")],
        )

    @classmethod
    def execute(cls, model, policy: str, temperature: float, balance: float) -> io.NodeOutput:
        chosen: Policy
        if policy == "recommended":
            chosen = RECOMMENDED
        elif policy == KLSoft.name:
            chosen = KLSoft(temperature=temperature, balance=balance)
        else:
            chosen = POLICIES[policy]()
        return io.NodeOutput(set_policy(model, chosen))


NODES = [KLLayerRouter]
