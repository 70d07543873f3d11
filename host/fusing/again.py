"""One model call of a run, kept to be made again with other weights: how far a file is from the run, in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...fusion.layers import Batch
from ...fusion.routing import Picture

# What core and models may read in a call's options. All others hold on to patchers, or change what the call computes.
PLAIN = ("sigmas", "sample_sigmas", "cond_or_uncond", "uuids")
CHANGING = ("patches", "patches_replace", "model_function_wrapper")
MOST_BYTES = 2**26
OPTIONS, CONTROL = 5, 4  # places after x, t, c_concat, c_crossattn


@dataclass(eq=False)
class KeptCall:
    """Arguments and output of a call, on the host.

    Attributes:
        step: that it belongs to.
        batch: what it computed.
        picture: what it told of its tokens.
        args, kwargs: of core's ``apply_model``.
        output: what the run made of them.
    """

    step: int
    batch: Batch
    picture: Picture
    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    output: Tensor = field(repr=False)

    @classmethod
    def of(
        cls, step: int, batch: Batch, picture: Picture, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> KeptCall | None:
        """Keep a call; None where it cannot be made again, or is too large to be kept."""
        names = dict(kwargs)
        options = args[OPTIONS] if len(args) > OPTIONS else names.get("transformer_options") or {}
        control = args[CONTROL] if len(args) > CONTROL else names.get("control")
        if control is not None or any(options.get(name) for name in CHANGING) or not isinstance(output, Tensor):
            return None
        names["transformer_options"] = {name: options[name] for name in PLAIN if name in options}
        names.pop("control", None)
        kept = (*args[:CONTROL],)
        if _bytes((kept, names)) > MOST_BYTES:
            return None
        return cls(step, batch, picture, kept, names, output)

    def on(self, device: torch.device) -> KeptCall:
        """The same elsewhere."""
        args, kwargs, output = _moved((self.args, self.kwargs, self.output), device)
        return KeptCall(self.step, self.batch, self.picture, args, kwargs, output)

    def distance(self, again: Tensor) -> float:
        """Of another output: the root mean square of the difference in the positive prompts' rows, over their range."""
        both = [self.batch.parts(values.float()) for values in (self.output, again)]
        if both[0] is None or both[1] is None:
            return float("nan")
        mine, other = (
            torch.cat([part for key, part in zip(self.batch.keys, parts, strict=True) if key.startswith("positive")])
            for parts in both
            if parts is not None
        )
        return float((mine - other).square().mean().sqrt() / (mine.max() - mine.min()).clamp_min(1e-12))


def load(model: ModelPatcher, call: KeptCall) -> None:
    """Have core load a model, and what rides on it, for a call."""
    needed = model.memory_required(list(call.output.shape))
    comfy.model_management.load_models_gpu([model, *model.get_nested_additional_models()], memory_required=needed)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes, parts))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    return type(value)(_moved(inner, device) for inner in value) if type(value) in (list, tuple) else value
