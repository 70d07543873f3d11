"""KLLayerRouter: how the LoRAs on a model are fused."""

from __future__ import annotations

from comfy_api.latest import io

from ..fusion.policies import KnOTS, Policy, SSRMerge
from ..fusion.routing import NAMED, SETTINGS, Refinement, with_settings
from ..host.core import ConductorError, chosen
from ..host.fusing import calibrated_by_prompts, replaying, set_policy, show_on
from .inputs import CATEGORY, RoutingPlan, policy_input, settings_inputs, typed

CHOICES = list(NAMED)
CHOICES.insert(CHOICES.index(KnOTS.name), SSRMerge.name)  # saved workflows know this order: it came before that one
BEFORE_SOCKETS = [setting.name for setting in SETTINGS].index("freeze_after") + 1  # of the settings; frozen


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
                "(arXiv 2602.15539). sum: plain stacking. kl_soft: a soft choice. The advanced settings concern the "
                "policies that measure while sampling: paper, kl_soft, js, cosine, energy, balanced and recommended."
            ),
            search_aliases=["lora router", "lora fusion policy", "k-lora", "dynamic lora fusion"],
            inputs=[
                io.Model.Input("model", tooltip="A model with, or on its way to, DualLoRADynamicLoader."),
                policy_input(CHOICES),
                *settings_inputs()[:BEFORE_SOCKETS],
                RoutingPlan.Input(
                    "plan",
                    optional=True,
                    tooltip="A routing plan of these LoRAs: its decisions are repeated and nothing is measured. Policy "
                    "and settings are then those of the plan.",
                ),
                io.Conditioning.Input(
                    "subject_prompt", optional=True, tooltip="ssr_merge: a prompt for the subject LoRA alone."
                ),
                io.Conditioning.Input(
                    "style_prompt", optional=True, tooltip="ssr_merge: a prompt for the style LoRA alone."
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="ssr_merge: an empty latent of the size that will be sampled."
                ),
                *settings_inputs()[BEFORE_SOCKETS:],
            ],
            outputs=[io.Model.Output("MODEL", tooltip="The model with this policy set.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # or a copy of the node would be given this one's model, and its routing map with it
        )

    @classmethod
    @typed
    def execute(
        cls,
        model,
        policy: str,
        plan=None,
        subject_prompt=None,
        style_prompt=None,
        latent=None,
        **settings,
    ) -> io.NodeOutput:
        if plan is not None:
            return cls._shown(replaying(model, plan))
        fusing: Policy
        if chosen(policy, CHOICES, "policy") == SSRMerge.name:
            fusing = calibrated_by_prompts(model, {"subject": subject_prompt, "style": style_prompt}, latent)
        else:
            fusing = NAMED[policy]
        try:
            changed = with_settings(fusing, Refinement(), settings)
        except ValueError as error:
            raise ConductorError(f"{error}. Change it in KLLayerRouter.") from error
        return cls._shown(set_policy(model, *changed))

    @classmethod
    def _shown(cls, model) -> io.NodeOutput:
        return io.NodeOutput(show_on(model, cls.hidden.unique_id, sets_policy=True))


NODES = [KLLayerRouter]
