"""How other packs reach into a model or a run, written anew: the mechanism of each, not its purpose.

Read of: KJNodes, Detail Daemon, tiled diffusion; Inspire, ppm, RES4LYF and TeaCache in part. Impact's and WaveSpeed's
ways are as their pages tell them.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any
from unittest.mock import patch as replaced

import comfy.sample
import comfy.samplers
import comfy_api.torch_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from .patches import both_orders
from .samplers import drawn
from .ways import CFG, SEED, STEPS, Put, Way, World

PATCHES, RUNS = "Mechanisms of other packs: patches", "Mechanisms of other packs: runs"
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"


def function_wrapper(world: World, model: ModelPatcher) -> ModelPatcher:
    """The model function of packs that change what a call gets: here each prompt in a call of its own."""
    patched = model.clone()

    def each_alone(apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        outputs = []
        for index, which in enumerate(given["cond_or_uncond"]):
            chunks = len(given["cond_or_uncond"])
            c = {key: v.chunk(chunks)[index] if isinstance(v, Tensor) else v for key, v in given["c"].items()}
            c["transformer_options"] = {**given["c"]["transformer_options"], "cond_or_uncond": [which]}
            x, t = given["input"].chunk(chunks)[index], given["timestep"].chunk(chunks)[index]
            outputs.append(apply(x, t, **c))
        return torch.cat(outputs)

    patched.set_model_unet_function_wrapper(each_alone)
    return patched


def tiles(world: World, model: ModelPatcher) -> ModelPatcher:
    """Tiled diffusion: a call of the model for each tile of the latent."""
    patched = model.clone()

    def tiled(apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        halves = given["input"].split(given["input"].shape[-1] // 2, dim=-1)
        return torch.cat([apply(half, given["timestep"], **given["c"]) for half in halves], dim=-1)

    patched.set_model_unet_function_wrapper(tiled)
    return patched


def patched_forward(world: World, model: ModelPatcher) -> ModelPatcher:
    """TeaCache's way: another forward on the network, for the time of a call, that leaves every other call out."""
    patched, kept = model.clone(), {}

    def cached(apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        network = patched.model.diffusion_model
        original = network.forward
        known = [float(s) for s in given["c"]["transformer_options"]["sample_sigmas"]]
        step = known.index(float(given["c"]["transformer_options"]["sigmas"][0]))

        def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if step % 2 == 0 or x.shape not in kept:
                kept[x.shape] = original(x, *args, **kwargs)
            return kept[x.shape]

        with replaced.multiple(network, forward=types.MethodType(forward, network)):
            return apply(given["input"], given["timestep"], **given["c"])

    patched.set_model_unet_function_wrapper(cached)
    return patched


def object_patch(world: World, model: ModelPatcher) -> ModelPatcher:
    """A module's forward as core's object patch."""
    patched = model.clone()
    block = patched.get_model_object(BLOCK)
    own = type(block).forward

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return own(self, x, *args, **kwargs) * 0.9 + x * 0.1

    patched.add_object_patch(f"{BLOCK}.forward", types.MethodType(forward, block))
    return patched


def layer_object_patch(world: World, model: ModelPatcher) -> ModelPatcher:
    """The same on a layer that LoRAs are for."""
    patched = model.clone()
    layer = patched.get_model_object(f"{BLOCK}.attn2.to_q")
    own = type(layer).forward

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return own(self, x * 1.1, *args, **kwargs)

    patched.add_object_patch(f"{BLOCK}.attn2.to_q.forward", types.MethodType(forward, layer))
    return patched


class _Swapped:
    """Before a network's class."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(x, *args, **kwargs) * 1.05  # type: ignore[misc]


def class_swap(world: World, model: ModelPatcher) -> ModelPatcher:
    """RES4LYF's way: the network is given another class, in place."""
    patched = model.clone()
    network = patched.model.diffusion_model
    own = type(network)
    swapped = type(own.__name__, (_Swapped, own), {})

    def swap(*_: Any) -> None:
        network.__class__ = swapped

    def back(*_: Any) -> None:
        network.__class__ = own

    patched.add_callback(CallbacksMP.ON_PRE_RUN, swap)
    patched.add_callback(CallbacksMP.ON_CLEANUP, back)
    return patched


def attention_couple(world: World, model: ModelPatcher) -> ModelPatcher:
    """ppm's way: more prompts than the call has, inside cross attention only; its layers see a larger batch."""
    patched = model.clone()
    other = world.conditioning(6)[0][0]

    def more(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        count, kinds = q.shape[0] // len(options["cond_or_uncond"]), options["cond_or_uncond"]
        more_of = other.repeat(count, 1, 1).to(k)
        qs, ks = [], []
        for index, kind in enumerate(kinds):
            own_q, own_k = q.chunk(len(kinds))[index], k.chunk(len(kinds))[index]
            qs += [own_q] if kind == 1 else [own_q, own_q]
            ks += [own_k] if kind == 1 else [own_k, more_of]
        return torch.cat(qs), torch.cat(ks), torch.cat(ks)

    def fewer(out: Tensor, options: dict[str, Any]) -> Tensor:
        kinds = options["cond_or_uncond"]
        count = out.shape[0] // sum(1 if kind == 1 else 2 for kind in kinds)
        parts, at = [], 0
        for kind in kinds:
            chunk = out[at : at + (count if kind == 1 else 2 * count)]
            at += len(chunk)
            parts.append(chunk if kind == 1 else chunk[:count] * 0.5 + chunk[count:] * 0.5)
        return torch.cat(parts)

    patched.set_model_attn2_patch(more)
    patched.set_model_attn2_output_patch(fewer)
    return patched


def replaced_attention(world: World, model: ModelPatcher) -> ModelPatcher:
    """An attention of its own, for every block (sparse and sage attention)."""
    patched = model.clone()

    def attention(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        return function(q, k * 0.9, v, heads, *args, **kwargs)

    options = patched.model_options["transformer_options"]
    options["optimized_attention_override"] = attention
    return patched


def negated_values(world: World, model: ModelPatcher) -> ModelPatcher:
    """NegPip's way: keys and values of cross attention from different halves of the prompt."""
    patched = model.clone()
    patched.set_model_attn2_patch(lambda q, k, v, options: (q, k[:, 0::2], v[:, 1::2] * -1.0))
    return patched


def wrappers_everywhere(world: World, model: ModelPatcher) -> ModelPatcher:
    """A wrapper of every kind that core has, each leaving a trace."""
    patched = model.clone()

    def outer(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return executor(noise * 1.01, *args, **kwargs)

    def call(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return executor(x * 1.01, *args, **kwargs)

    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH):
        passing = outer if kind == WrappersMP.OUTER_SAMPLE else _passing
        patched.add_wrapper_with_key(kind, "other", passing)
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        patched.add_wrapper_with_key(kind, "other", call)
    return patched


def _passing(executor: Any, *args: Any, **kwargs: Any) -> Any:
    return executor(*args, **kwargs)


def scheduled_cfg(world: World, model: ModelPatcher) -> ModelPatcher:
    """CFG of its own, one a step, and the uncond left out of the last steps."""
    patched = model.clone()

    def cfg(given: dict[str, Any]) -> Tensor:
        known = given["model_options"]["transformer_options"]["sample_sigmas"]
        step = int((known.to(given["sigma"]) - given["sigma"][0]).abs().argmin())
        return given["uncond"] + (given["cond"] - given["uncond"]) * (3.0 - 0.5 * step)

    patched.set_model_sampler_cfg_function(cfg, disable_cfg1_optimization=True)
    return patched


def weight_wrapper(world: World, model: ModelPatcher) -> ModelPatcher:
    """Core's hook on one layer's weight, as it is used."""
    patched = model.clone()
    patched.add_weight_wrapper(f"{BLOCK}.attn1.to_out.0.weight", lambda weight: weight * 1.0)
    return patched


def torch_compiled(world: World, model: ModelPatcher) -> ModelPatcher:
    """TorchCompileModel, by the backend that needs no compiler."""
    patched = model.clone()
    comfy_api.torch_helpers.set_torch_compile_wrapper(model=patched, backend="eager")
    return patched


def by_function(function: Callable[..., Tensor]) -> Any:
    """A run with a sampler of its own."""

    def run(world: World, model: ModelPatcher, put: Put) -> Tensor:
        return _guided(world, put(model), comfy.samplers.KSAMPLER(function))

    return run


def _guided(
    world: World, model: ModelPatcher, sampler: Any, sigmas: Tensor | None = None, latent: Tensor | None = None
) -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(world.conditioning(1), world.conditioning(2))
    guider.set_cfg(CFG)
    if sigmas is None:
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    given = world.latent() if latent is None else latent
    noise = comfy.sample.prepare_noise(given, SEED) if latent is None else torch.zeros_like(given)
    with torch.inference_mode():
        return guider.sample(noise, given, sampler, sigmas, disable_pbar=True, seed=SEED)


def lying_about_noise(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
    """Detail Daemon's way: the model is told of less noise than there is."""
    for here, following in zip(sigmas, sigmas[1:], strict=False):
        denoised = model(x, here.expand(len(x)) * 0.95, **extra_args)
        x = x + (x - denoised) / here * (following - here)
    return x


def substeps(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
    """RES4LYF's way: several stages a step at noise levels of their own, each asked twice."""
    for here, following in zip(sigmas, sigmas[1:], strict=False):
        middle = (here * following.clamp(min=0.02)).sqrt()
        guess = model(x, here.expand(len(x)), **extra_args)
        between = x + (x - guess) / here * (middle - here)
        for _repeat in range(2):
            second = model(between, middle.expand(len(x)), **extra_args)
            between = x + (x - (guess + second) / 2) / here * (middle - here)
        x = x + (x - second) / here * (following - here)
    return x


def nested_run(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """A sampler that samples: another whole run inside a step."""
    ready = put(model)

    def function(inner: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        for step, (here, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            denoised = inner(x, here.expand(len(x)), **extra_args)
            if step == 1:
                denoised = denoised * 0.5 + 0.5 * world.sample(ready, steps=2)
            x = x + (x - denoised) / here * (following - here)
        return x

    return _guided(world, ready, comfy.samplers.KSAMPLER(function))


def unsampling(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """A picture back into noise, then out of it again."""
    ready = put(model)
    sigmas = comfy.samplers.calculate_sigmas(ready.get_model_object("model_sampling"), "normal", STEPS)
    euler = comfy.samplers.sampler_object("euler")
    back = sigmas.flip(0)
    back[0] = 0.02
    noise = _guided(world, ready, euler, back, drawn(world))
    return _guided(world, ready, euler, sigmas, noise)


def two_models_in_turn(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """Impact's and Inspire's regional way: a step each of two models, under masks that complete each other."""
    with_loras, latent = put(model), world.latent()
    mask = torch.zeros(1, 1, *latent.shape[-2:])
    mask[..., : latent.shape[-1] // 2] = 1.0
    for step in range(STEPS):
        for turn, used, where in ((0, with_loras, mask), (1, model, 1.0 - mask)):
            noise = torch.zeros_like(latent) if step or turn else None
            how: dict[str, Any] = {"start_step": step, "last_step": step + 1, "noise_mask": where}
            latent = world.sample(used, latent_image=latent, noise=noise, **how)
    return latent


def a_guider_every_step(world: World, model: ModelPatcher, put: Put) -> Tensor:
    """A guider for each step, with a prompt and a scale of its own (prompt travel, step-wise schedules)."""
    ready, latent = put(model), world.latent()
    sigmas = comfy.samplers.calculate_sigmas(ready.get_model_object("model_sampling"), "normal", STEPS)
    for step in range(STEPS):
        guider = comfy.samplers.CFGGuider(ready.clone())
        guider.set_conds(world.conditioning(1 + step), world.conditioning(2))
        guider.set_cfg(CFG + 0.2 * step)
        noise = torch.zeros_like(latent) if step else comfy.sample.prepare_noise(latent, SEED)
        with torch.inference_mode():
            euler = comfy.samplers.sampler_object("euler")
            latent = guider.sample(noise, latent, euler, sigmas[step : step + 2], disable_pbar=True, seed=SEED)
    return latent


PATCH_ROWS = {
    "each prompt in a call of its own": function_wrapper,
    "tiles of the latent": tiles,
    "a forward put on for a call (TeaCache)": patched_forward,
    "a block's forward, object patch (KJNodes)": object_patch,
    "a LoRA layer's forward, object patch": layer_object_patch,
    "another class in place (RES4LYF)": class_swap,
    "more prompts inside attention (ppm)": attention_couple,
    "another attention (KJNodes)": replaced_attention,
    "keys and values apart (NegPip)": negated_values,
    "wrappers of every kind": wrappers_everywhere,
    "CFG of its own": scheduled_cfg,
    "weight wrapper": weight_wrapper,
    "TorchCompileModel": torch_compiled,
}
WAYS = [
    *(way for row, patch in PATCH_ROWS.items() for way in both_orders(PATCHES, row, patch)),
    Way(RUNS, "less noise told than there is (Detail Daemon)", "one run", by_function(lying_about_noise)),
    Way(RUNS, "stages at noise levels of their own (RES4LYF)", "one run", by_function(substeps)),
    Way(RUNS, "a run inside a step", "one run", nested_run),
    Way(RUNS, "unsampling", "one run", unsampling),
    Way(RUNS, "two models in turn under masks (Impact, Inspire)", "one run", two_models_in_turn),
    Way(RUNS, "a guider every step (prompt travel)", "one run", a_guider_every_step),
]
