"""The router's settings as inputs, made of what stands with their fields."""

from __future__ import annotations

from comfy_api.latest import io

from ...fusion.policies import POLICIES, Setting
from ...fusion.routing import NAMED, SETTINGS, acting


def policy_input(choices: list[str]) -> io.Input:
    """The policy; ``choices`` may hold more than need nothing but their name."""
    assert set(POLICIES) <= set(choices)
    return io.Combo.Input(
        "policy",
        options=choices,
        default="recommended",
        tooltip="Who gets a layer that both LoRAs touch. ssr_merge needs the two prompts and the latent below.",
        # For the page, which shows the settings that do something.
        extra_dict={"acting": {name: list(acting(NAMED[name])) if name in NAMED else [] for name in choices}},
    )


def settings_inputs() -> list[io.Input]:
    """All of them. Those folded away are optional too: workflows saved without them keep working."""
    return [_input(setting) for setting in SETTINGS]


def _input(setting: Setting) -> io.Input:
    common = {"default": setting.default, "tooltip": setting.tooltip}
    if setting.folded:
        common |= {"optional": True, "advanced": True}
    if isinstance(setting.default, bool):
        return io.Boolean.Input(setting.name, **common)
    if isinstance(setting.default, str):
        return io.Combo.Input(setting.name, options=list(setting.options), **common)
    number = io.Int.Input if isinstance(setting.default, int) else io.Float.Input
    return number(setting.name, min=setting.least, max=setting.most, step=setting.step, **common)
