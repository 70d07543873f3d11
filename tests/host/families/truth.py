"""What a small model does, seen while it runs: which layers feed its attentions, and where tokens lie in the picture.

Nothing here looks at a name. Layers are found by gradients: queries, keys and values are the layers whose channels go
head by head into an attention, the output layer is the one that an attention's heads go into.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.modules.attention
import comfy.ops
import comfy.quant_ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from lora_conductor.fusion.routing import Picture
from lora_conductor.host.core import picture_of

from .family import Family, sample

Spot = tuple[int, ...]  # a place in the latent, (..., y, x)

EXACTLY = 0.999
MOSTLY = 0.9  # of a squared gradient: some models normalise queries over all heads


def _unturned(single: bool) -> Any:
    """In the place of a kernel of the host's, which has no gradient: rotations move nothing out of a head."""
    return (lambda x, *_, **__: x) if single else (lambda q, k, *_, **__: (q, k))


@dataclass
class Call:
    """One call of an attention: the module that made it, the width of its heads, and the layers by what they give."""

    owner: str
    head: int
    layers: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)  # layer -> {"q": channels, ...}


def recorded_call(family: Family, model: ModelPatcher) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the model's first call in a sample, free of inference mode."""
    found: list[tuple[Any, Any]] = []
    before = model.model.apply_model

    def apply_model(*args: Any, **kwargs: Any) -> Tensor:
        found.append((args, kwargs))
        return before(*args, **kwargs)

    model.model.__dict__["apply_model"] = apply_model
    try:
        sample(family, model)
    finally:
        del model.model.__dict__["apply_model"]
    args, kwargs = found[0]
    return _cloned(args), _cloned(kwargs)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        made = value.clone()
        # Not a leaf: some models write into what they are given.
        return made.requires_grad_() + 0 if made.is_floating_point() and made.numel() else made
    if isinstance(value, dict):
        return {key: _cloned(its) for key, its in value.items()}
    return type(value)(map(_cloned, value)) if type(value) in (list, tuple) else value


@contextmanager
def _attention_seen(watch: Any) -> Iterator[None]:
    """Every function of the host that computes attention, told to ``watch(q, k, v, heads wide, output)``."""
    names = [name for name in vars(comfy.ldm.modules.attention) if name.startswith("attention_")]
    ours = {getattr(comfy.ldm.modules.attention, name) for name in names}
    plain = comfy.ldm.modules.attention.attention_pytorch
    sdpa = torch.nn.functional.scaled_dot_product_attention
    inside = []

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        width = q.shape[-1] if kwargs.get("skip_reshape") else q.shape[-1] // heads
        inside.append(1)
        try:
            out = plain(q, k, v, heads, *args, **kwargs)
        finally:
            inside.pop()
        if not kwargs.get("skip_reshape"):
            q, k, v = (value.flatten(2) for value in (q, k, v))
        watch(q, k, v, width, out)
        return out

    def product(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = sdpa(q, k, v, *args, **kwargs)
        if not inside:
            watch(q, k, v, q.shape[-1], out)
        return out

    replaced = []
    for module in [m for name, m in list(sys.modules.items()) if name.startswith("comfy") and m is not None]:
        for name, value in list(vars(module).items()):
            if (
                callable(value)
                and getattr(value, "__hash__", None)
                and value in ours
                and module is not sys.modules["comfy.ldm.modules.attention"]
            ):
                replaced.append((module, name, value))
                setattr(module, name, attention)
    attention_module = comfy.ldm.modules.attention
    for name in ("optimized_attention", "optimized_attention_masked"):
        replaced.append((attention_module, name, getattr(attention_module, name)))
        setattr(attention_module, name, attention)
    for module in (torch.nn.functional, comfy.ops):
        if hasattr(module, "scaled_dot_product_attention"):
            replaced.append((module, "scaled_dot_product_attention", module.scaled_dot_product_attention))
            module.scaled_dot_product_attention = product
    kernels = getattr(comfy.quant_ops, "ck", None)
    for name in [name for name in vars(kernels or object) if "rope" in name]:
        replaced.append((kernels, name, getattr(kernels, name)))
        setattr(kernels, name, _unturned(name.rstrip("_").endswith("1")))
    try:
        yield
    finally:
        for module, name, value in reversed(replaced):
            setattr(module, name, value)


def attentions(family: Family, model: ModelPatcher) -> list[Call]:
    """The attention calls of one model call."""
    args, kwargs = recorded_call(family, model)
    network = model.model.diffusion_model
    stack: list[str] = []
    outputs: list[tuple[str, Tensor, int]] = []  # name, output, depth of calls before
    calls: list[Call] = []
    waiting: list[tuple[Call, Tensor, str]] = []

    def watch(q: Tensor, k: Tensor, v: Tensor, width: int, out: Tensor) -> None:
        owner = stack[-1] if stack else ""
        call = Call(owner, width)
        calls.append(call)
        near = [(name, made) for name, made, _ in outputs[-60:] if name.startswith(f"{owner}.")]
        for kind, value in (("q", q), ("k", k), ("v", v)):
            if not value.requires_grad:
                continue
            head = value[:, :1] if value.ndim == 4 and value.shape[-1] == width else value[..., :width]
            each = [made for _, made in near]
            grads, whole = (_grads(part, each) for part in (head, value))
            for (name, _), grad, all_of_it in zip(near, grads, whole, strict=True):
                if grad is not None and _in_one_run(grad, width):
                    call.layers.setdefault(name, {})[kind] = _channels(all_of_it)
        waiting.append((call, out, owner))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            full = f"diffusion_model.{name}" if name else "diffusion_model"

            def enter(module: nn.Module, inputs: Any, full: str = full) -> None:
                stack.append(full)
                if not (hasattr(module, "in_features") and inputs and isinstance(inputs[0], Tensor)):
                    return
                given = inputs[0]
                for call, out, owner in waiting[-2:]:
                    parent = owner if full.startswith(f"{owner}.") else owner.rpartition(".")[0]
                    if not (full.startswith(f"{parent}.") and given.requires_grad and out.requires_grad):
                        continue
                    if (
                        given.shape[-1] != module.in_features
                        or any("out" in its for its in call.layers.values())
                        and (given.shape[-1] != _width(out))
                    ):
                        continue
                    (grad,) = _grads(given[..., : call.head], [out])
                    if grad is None:
                        continue
                    flat = grad.transpose(1, 2).flatten(2) if grad.ndim == 4 else grad
                    if _in_one_run(flat, call.head, EXACTLY) and flat.shape[-1] <= module.in_features:
                        call.layers.setdefault(full, {})["out"] = (0, module.out_features)

            def leave(module: nn.Module, inputs: Any, output: Any, full: str = full) -> None:
                stack.pop()
                if isinstance(output, Tensor) and hasattr(module, "in_features") and output.requires_grad:
                    outputs.append((full, output, len(calls)))

            for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
                hooks.callback(handle.remove)
        hooks.enter_context(_attention_seen(watch))
        hooks.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        with torch.inference_mode(False), torch.enable_grad():
            model.model.apply_model(*args, **kwargs)
    return calls


def _width(out: Tensor) -> int:
    return out.shape[-1] * out.shape[1] if out.ndim == 4 else out.shape[-1]


def _grads(value: Tensor, of: list[Tensor]) -> list[Tensor | None]:
    if not value.requires_grad or not of:
        return [None] * len(of)
    seed = torch.linspace(1, 2, value.numel()).reshape(value.shape)
    return list(torch.autograd.grad((value * seed).sum(), of, retain_graph=True, allow_unused=True))


def _channels(grad: Tensor | None) -> tuple[int, int]:
    """The run of channels that a gradient lies on; none where it has gaps."""
    assert grad is not None
    moved = grad.float().abs().flatten(0, -2).sum(0).nonzero().flatten().tolist()
    first, last = moved[0], moved[-1] + 1
    return (first, last) if last - first == len(moved) else (0, 0)


def _in_one_run(grad: Tensor, width: int, mostly: float = MOSTLY) -> bool:
    """Whether a gradient lies on one head's channels alone."""
    power = grad.float().square().flatten(0, -2).sum(0)
    total = float(power.sum())
    if not total or len(power) % width:
        return False
    return len(power) == width or float(power.reshape(-1, width).sum(-1).max()) > mostly * total


def tokens_of(family: Family, model: ModelPatcher) -> tuple[dict[str, int], dict[str, dict[Spot, set[int]]], Picture]:
    """How many tokens each layer has; which of them some numbers of the output are made of; what we know of the call.

    Of a layer that has an attention behind it, that is nearly all tokens; of others, the one that lies there.
    """
    args, kwargs = recorded_call(family, model)
    made: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, module in model.model.diffusion_model.named_modules():
            if not hasattr(module, "in_features"):
                continue

            def keep(module: nn.Module, inputs: Any, output: Any, full: str = f"diffusion_model.{name}") -> None:
                if isinstance(output, Tensor) and output.ndim == 3 and output.requires_grad:
                    made[full] = output

            hooks.callback(module.register_forward_hook(keep).remove)
        hooks.enter_context(_attention_seen(lambda *_: None))
        hooks.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        with torch.inference_mode(False), torch.enable_grad():
            out = model.model.apply_model(*args, **kwargs)
            found: dict[str, dict[Spot, set[int]]] = {name: {} for name in made}
            space = out.shape[2:]
            for part in (0.05, 0.3, 0.55, 0.9):
                spot = tuple(int(n * (part if i % 2 else 1 - part)) for i, n in enumerate(space))
                value = out[(slice(None), slice(None), *spot)]
                for name, grad in zip(made, _grads(value, list(made.values())), strict=True):
                    if grad is not None:
                        found[name][spot] = set(grad.abs().amax((0, 2)).nonzero().flatten().tolist())
    text = args[3] if len(args) > 3 else kwargs.get("c_crossattn")
    picture = picture_of(model.model, args[0], text, kwargs)
    return {name: its.shape[1] for name, its in made.items()}, found, picture
