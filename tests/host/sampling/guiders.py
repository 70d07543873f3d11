"""Every guider of core's, and what else stands around a prompt: hooks, ControlNets, bypassing LoRAs, areas."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.cldm.cldm import ControlNet
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .. import tiny
from .patches import both_orders
from .ways import CFG, SEED, STEPS, Put, Way, World, called

GUIDERS, CONDITIONING = "Guiders", "Prompts"


def guided_by(kind: str, **inputs: Any) -> Any:
    """SamplerCustomAdvanced with a guider of core's."""

    def run(world: World, model: ModelPatcher, put: Put) -> Tensor:
        comfy.utils.PROGRESS_BAR_ENABLED = False
        ready = put(model)
        given = {name: value(world) if callable(value) else value for name, value in inputs.items()}
        (guider,) = called(kind, model=ready, **given)
        sigmas = comfy.samplers.calculate_sigmas(ready.get_model_object("model_sampling"), "normal", STEPS)
        (noise,) = called("RandomNoise", noise_seed=SEED)
        sampler = comfy.samplers.sampler_object("euler")
        latent = {"samples": world.latent()}
        return called(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
        )[0]["samples"]

    return run


def _prompt(seed: int) -> Any:
    return lambda world: world.conditioning(seed)


BOTH = {"positive": _prompt(1), "negative": _prompt(2)}
DUAL = {"cond1": _prompt(1), "cond2": _prompt(4), "negative": _prompt(2), "cfg_conds": CFG, "cfg_cond2_negative": 1.5}
RUNS = {
    "BasicGuider": guided_by("BasicGuider", conditioning=_prompt(1)),
    "CFGGuider": guided_by("CFGGuider", cfg=CFG, **BOTH),
    "CFGGuider, CFG 1": guided_by("CFGGuider", cfg=1.0, **BOTH),
    "DualCFGGuider, regular": guided_by("DualCFGGuider", style="regular", **DUAL),
    "DualCFGGuider, nested": guided_by("DualCFGGuider", style="nested", **DUAL),
    "PerpNegGuider": guided_by("PerpNegGuider", cfg=CFG, neg_scale=0.5, empty_conditioning=_prompt(5), **BOTH),
}


def dual_model(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """The LoRAs on the positive model; the negative one has none."""
    other = world.models[0] if model is world.models[1] else world.models[1]
    return guided_by("DualModelGuider", model_negative=other, cfg=CFG, **BOTH)(world, model, put)


def hooked(world: World, keyframes: bool) -> list[Any]:
    """A prompt with a third LoRA as core's hook, scheduled if asked."""
    path = world.files[0][0].with_name("hook.safetensors")
    tiny.make_lora(path, tiny.layer_shapes(world.models[0]), seed=5, size=0.2)
    hooks = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(str(path)), 0.7, 0.0)
    if keyframes:
        group = comfy.hooks.HookKeyframeGroup()
        for strength, start in ((1.0, 0.0), (0.3, 0.5)):
            group.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
        hooks.set_keyframes_on_hooks(group)
    return comfy.hooks.set_hooks_for_conditioning(world.conditioning(1), hooks)


def with_hook(keyframes: bool) -> Any:
    def run(world: World, model: ModelPatcher, put: Put) -> Tensor:
        ready = put(model).clone()
        ready.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed
        return world.sample(ready, positive=hooked(world, keyframes))

    return run


def with_control(world: World, model: ModelPatcher, put: Put) -> Tensor:
    config = dict(model.model.model_config.unet_config)
    for name in ("out_channels", "transformer_depth_output"):
        config.pop(name)
    network = ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast, device="cpu")
    tiny.randomise(network, 4)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), manual_cast_dtype=None)
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ((context, extra),) = world.conditioning(1)
    held = {**extra, "control": control.set_cond_hint(hint, 1.0, (0.0, 0.7)), "control_apply_to_uncond": True}
    return world.sample(put(model), positive=[[context, held]])


def with_areas(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """Two prompts for two areas, one of them for a part of the run."""
    ((first, extra),), ((second, more),) = world.conditioning(1), world.conditioning(6)
    positive = [
        [first, {**extra, "area": (8, 4, 0, 0), "strength": 1.0}],
        [second, {**more, "area": (8, 4, 0, 4), "strength": 0.8, "start_percent": 0.3, "end_percent": 1.0}],
    ]
    return world.sample(put(model), positive=positive)


def with_lengths(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """Prompts of different lengths: core does not put them into one call."""
    return world.sample(put(model), negative=world.conditioning(2, 7))


def bypassing(world: World, model: ModelPatcher) -> ModelPatcher:
    """Core's LoRA that is added beside the layers instead of to the weights."""
    path = world.files[0][0].with_name("bypass.safetensors")
    tiny.make_lora(path, tiny.layer_shapes(world.models[0]), seed=6, size=0.2)
    tensors = comfy.utils.load_torch_file(str(path))
    return comfy.sd.load_bypass_lora_for_models(model, None, tensors, 0.7, 0.0)[0]


WAYS = [
    *(Way(GUIDERS, name, "one run", run) for name, run in RUNS.items()),
    Way(GUIDERS, "DualModelGuider", "one run", dual_model),
    Way(CONDITIONING, "LoRA hook", "one run", with_hook(False)),
    Way(CONDITIONING, "LoRA hook with keyframes", "one run", with_hook(True)),
    Way(CONDITIONING, "ControlNet", "one run", with_control),
    Way(CONDITIONING, "areas and time ranges", "one run", with_areas),
    Way(CONDITIONING, "prompts of two lengths", "one run", with_lengths),
    *both_orders(CONDITIONING, "LoraLoaderBypass", bypassing),
]
