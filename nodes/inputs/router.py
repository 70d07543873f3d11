"""The router's settings as inputs: ranges and tooltips. Defaults are the neutral ones of ``Refinement``."""

from __future__ import annotations

from comfy_api.latest import io

from ...fusion.policies import POLICIES, KLSoft
from ...fusion.policies.scores import SCORES
from ...fusion.routing.refinement import GRANULARITIES, OWN, Refinement

NEUTRAL = Refinement()
# name: least, most, step, tooltip
NUMBERS = {
    "even_out": (
        0.0,
        1.0,
        0.05,
        "Takes out how much louder one LoRA is than the other overall, so that a LoRA trained harder does not win "
        "everywhere. 0 leaves it, 1 takes all of it out. recommended evens out layer by layer already.",
    ),
    "floor": (0.0, 1.0, 0.05, "The least that either LoRA gets in any layer. 0.3 keeps a loser recognisable."),
    "smoothing": (
        0.0,
        0.99,
        0.05,
        "Steadies decisions over steps: the share of the step before in each new measurement. 0.7 stops flicker.",
    ),
    "hysteresis": (
        0.0,
        10.0,
        0.05,
        "All-or-nothing policies: how much clearer than a draw a layer must be before it changes hands. 0.15 is mild.",
    ),
    "time_lead": (
        -10.0,
        10.0,
        0.1,
        "Prefers the subject in the first steps (composition) and the style in the last (texture) by this much; "
        "negative is the other way round. recommended has a hand-over of its own, which this adds to.",
    ),
    "layer_prior": (
        0.0,
        10.0,
        0.1,
        "Prefers the subject in blocks known for content and the style in blocks known for style (SDXL, FLUX). "
        "Other models have no such blocks, and nothing changes there.",
    ),
    "blur": (0.0, 16.0, 0.5, "Granularity token: how far, in tokens, neighbouring places decide together."),
    "start": (0.0, 1.0, 0.01, "Routing begins at this part of the run. Before it both LoRAs are on, whole."),
    "end": (0.0, 1.0, 0.01, "Routing ends at this part of the run. After it both LoRAs are on, whole."),
    "cap": (
        0.0,
        10.0,
        0.05,
        "Against burnt pictures: both together add to a layer at most this many times what the louder does. 0: off.",
    ),
}


def settings_inputs() -> list[io.Input]:
    """All of them, folded away and optional: workflows saved without them keep working. Only ever append here."""
    return [
        io.Combo.Input(
            "score",
            options=[OWN, *SCORES],
            default=NEUTRAL.score,
            optional=True,
            advanced=True,
            tooltip="What is measured of a LoRA in a layer. standardised_kl and energy are not fooled by the huge "
            "single activations of FLUX-like models; kl is the paper's.",
        ),
        *(
            io.Float.Input(
                name,
                default=getattr(NEUTRAL, name),
                min=least,
                max=most,
                step=step,
                optional=True,
                advanced=True,
                tooltip=tooltip,
            )
            for name, (least, most, step, tooltip) in NUMBERS.items()
        ),
        io.Combo.Input(
            "granularity",
            options=list(GRANULARITIES),
            default=NEUTRAL.granularity,
            optional=True,
            advanced=True,
            tooltip="What is decided at once: a whole layer, each attention head, or each place in the picture "
            "(token). Finer is slower.",
        ),
        _switch(
            "group_attention",
            "Queries and keys of an attention share one decision, values and output another, so that one LoRA's "
            "question is never put to the other's keys.",
        ),
        _switch(
            "follow_cond",
            "The negative prompt takes what was decided for the positive one a step earlier, so that CFG does not "
            "amplify differences in routing.",
        ),
        io.Int.Input(
            "freeze_after",
            default=NEUTRAL.freeze_after,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="Measure in this many steps, then settle the rest of the run at once; where both prompts get the "
            "same (emphasis 1, or no CFG), as ordinary weight patches, at no cost. 0 measures in every step. Does not "
            "concern switch, composite and the policies that merge before sampling.",
        ),
    ]


def emphasis_input() -> io.Input:
    """Of its own, since it came after the router's sockets."""
    return io.Float.Input(
        "emphasis",
        default=NEUTRAL.emphasis,
        min=0.0,
        max=10.0,
        step=0.05,
        optional=True,
        advanced=True,
        tooltip="How many times what the LoRAs do counts in the picture. 1: once, as with ordinary loaders. 2: twice, "
        "by leaving that much of it out of the negative prompt's pass. 0: what suits the policy. At CFG 1 nothing "
        "changes. Policies that merge before sampling cannot do it, except sum.",
    )


def policy_inputs(choices: list[str]) -> list[io.Input]:
    """The policy and the two settings that are not folded away."""
    assert set(POLICIES) <= set(choices)
    return [
        io.Combo.Input(
            "policy",
            options=choices,
            default="recommended",
            tooltip="Who gets a layer that both LoRAs touch. ssr_merge needs the two prompts and the latent below.",
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
            default=NEUTRAL.lean,
            min=-10.0,
            max=10.0,
            step=0.1,
            tooltip="Leaning of every policy that measures. Above 0 favours the subject, below 0 the style, 0 neither. "
            "Try 1 or -1 first.",
        ),
    ]


def _switch(name: str, tooltip: str) -> io.Input:
    return io.Boolean.Input(name, default=getattr(NEUTRAL, name), optional=True, advanced=True, tooltip=tooltip)
