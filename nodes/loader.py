"""DualLoRADynamicLoader: a subject LoRA and a style LoRA on one model."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..host.core import printable
from ..host.fusing import load_loras, show_on, trigger_words
from ..host.loras import NO_LORA, LoraChoice, choices_of_stack, stack_of
from .inputs import CATEGORY, LoraStackType, typed


class DualLoRADynamicLoader(io.ComfyNode):
    """Loads two LoRAs so that they are fused layer by layer while sampling, instead of being stacked."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [NO_LORA, *folder_paths.get_filename_list("loras")]
        return io.Schema(
            node_id="DualLoRADynamicLoader",
            display_name="Dual LoRA Dynamic Loader",
            category=CATEGORY,
            description=(
                "This subject, in that style: loads a subject LoRA and a style LoRA and lets them share the picture. "
                "In every layer and at every step, what each LoRA does is measured and the two are fused accordingly. "
                "Works on its own with the recommended policy; KLLayerRouter changes it. Loaders can be chained."
            ),
            search_aliases=["dual lora", "two loras", "subject style lora", "character style", "lora merge", "k-lora"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model the LoRAs were trained for."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder. Connect it if the LoRAs trained one too; its weights are merged as in "
                    "ComfyUI's own LoRA loader.",
                ),
                io.Combo.Input(
                    "subject_lora",
                    options=files,
                    tooltip="LoRA of what is in the picture: a person, a pet, a thing. 'None' leaves the role empty.",
                ),
                io.Combo.Input(
                    "style_lora",
                    options=files,
                    tooltip="LoRA of how the picture looks: a painter, a medium, a look. 'None' leaves the role empty.",
                ),
                _strength("subject_strength", "How strongly the subject LoRA changes the model before routing."),
                _strength("style_strength", "How strongly the style LoRA changes the model before routing."),
                _strength("subject_clip_strength", "Strength of the subject LoRA's text-encoder part.", advanced=True),
                _strength("style_clip_strength", "Strength of the style LoRA's text-encoder part.", advanced=True),
                _stack("subject_stack", "subject"),
                _stack("style_stack", "style"),
                _switch("subject"),
                _switch("style"),
                io.Float.Input(
                    "balance",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    tooltip="Leaning: above 0 favours the subject, below 0 the style, 0 neither. Try 1 or -1 first. "
                    "With a KLLayerRouter, before or behind, its own balance counts instead.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="The model with both LoRAs, fused while sampling."),
                io.Clip.Output("CLIP", tooltip="The text encoder with both LoRAs' text parts."),
                io.String.Output(
                    "report", tooltip="What was applied to which layers, what could not be, and where the two meet."
                ),
                LoraStackType.Output(
                    "lora_stack",
                    tooltip="All LoRAs applied here with their strengths, subjects first, for nodes of other packs. "
                    "Those stack them plainly, without routing.",
                ),
                io.String.Output(
                    "trigger_words",
                    tooltip="The words both LoRAs are called by, as their files or notes beside them name them, for "
                    "the prompt. Empty where they name none.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # or a copy of the node would be given this one's model, and its routing map with it
        )

    @classmethod
    @typed
    def execute(
        cls,
        model,
        subject_lora: str,
        style_lora: str,
        subject_strength: float,
        style_strength: float,
        subject_clip_strength: float = 1.0,
        style_clip_strength: float = 1.0,
        clip=None,
        subject_stack=None,
        style_stack=None,
        subject_on: bool = True,
        style_on: bool = True,
        balance: float = 0.0,
    ) -> io.NodeOutput:
        choices = [
            LoraChoice(subject_lora, "subject", subject_strength, subject_clip_strength, on=subject_on),
            *choices_of_stack(subject_stack, "subject", "subject_stack"),
            LoraChoice(style_lora, "style", style_strength, style_clip_strength, on=style_on),
            *choices_of_stack(style_stack, "style", "style_stack"),
        ]
        words = trigger_words(choices, clip is not None)
        model, clip, report = load_loras(model, clip, choices, balance)
        report = printable(report)
        model = show_on(model, cls.hidden.unique_id, sets_policy=False)
        stack = stack_of(choices, clip is not None)
        return io.NodeOutput(model, clip, report, stack, words, ui={"text": [report]})


def _stack(name: str, role: str) -> io.Input:
    return LoraStackType.Input(
        name,
        optional=True,
        tooltip=f"More {role} LoRAs, from a node of another pack that makes a LORA_STACK, at the stack's strengths.",
    )


def _switch(role: str) -> io.Input:
    return io.Boolean.Input(
        f"{role}_on",
        default=True,
        optional=True,
        tooltip=f"Off: as if the {role} LoRA were None, while its name and strengths stay. Stacks go on.",
    )


def _strength(name: str, tooltip: str, *, advanced: bool | None = None) -> io.Float.Input:
    note = " 1 is as trained, 0 is off, negative turns it around."
    return io.Float.Input(
        name, default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=tooltip + note, advanced=advanced
    )


NODES = [DualLoRADynamicLoader]
