"""Gradients through networks that ComfyUI loaded.

Nodes run under torch.inference_mode(), and what is created there, weights included, are inference tensors, which
autograd refuses to save for the backward pass. Leaving the mode is not enough; such weights must be copied outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Leave inference mode and record gradients, whatever the caller's mode. Yields nothing."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def normal_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that autograd accepts. Call it outside inference mode; does not track the original."""
    return tensor.detach().clone()


def _own_copy(saved: torch.Tensor) -> torch.Tensor:
    # Weights have no history and are not overwritten: only activations are copied.
    return saved if saved.grad_fn is None else saved.detach().clone()


class _Call(torch.nn.Module):
    """Makes any method that uses a module's weights callable through torch.func.functional_call."""

    def __init__(self, module: torch.nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.wrapped = module
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class DifferentiableCall:
    """Calls a function of a module so that gradients reach its inputs.

    Weights that are inference tensors, lie on another device than `device` (offloaded, or managed as dynamic VRAM) or
    have not `dtype` (where one is asked for) stand in as copies, made at the first call, outside inference mode. The
    module itself is not changed. `close` drops the copies.

    skip: prefixes of weights that the function does not use and that need no copy.
    overwrites: whether the module changes tensors in place that the backward pass needs; they are then kept as copies.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        function: Callable[..., Any],
        device: torch.device,
        dtype: torch.dtype | None = None,
        skip: tuple[str, ...] = (),
        overwrites: bool = False,
    ) -> None:
        self._call = _Call(module, function)
        self._device = device
        self._dtype = dtype
        self._skip = tuple(f"wrapped.{prefix}" for prefix in skip)
        self._overwrites = overwrites
        self._copies: dict[str, torch.Tensor] | None = None

    def __call__(self, *args: Any) -> Any:
        """Call with gradients; the caller has entered `gradients_enabled`."""
        if self._copies is None:
            self._copies = self._make_copies()
        if self._overwrites:
            with torch.autograd.graph.saved_tensors_hooks(_own_copy, lambda saved: saved):
                return torch.func.functional_call(self._call, self._copies, args)
        return torch.func.functional_call(self._call, self._copies, args)

    def close(self) -> None:
        """Free the copies; a later call makes them anew."""
        self._copies = None

    def _make_copies(self) -> dict[str, torch.Tensor]:
        copies = {}
        tensors = [*self._call.named_parameters(), *self._call.named_buffers()]
        for name, tensor in tensors:
            if self._skip and name.startswith(self._skip):
                continue
            dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
            if tensor.is_inference() or tensor.device != self._device or tensor.dtype != dtype:
                copies[name] = tensor.detach().to(device=self._device, dtype=dtype, copy=True)
        return copies
