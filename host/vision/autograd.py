"""Gradients through networks that ComfyUI loaded.

Nodes run under torch.inference_mode(), and what is created there, weights included, are inference tensors, which
autograd refuses to save for the backward pass. Leaving the mode is not enough: such weights need stand-ins that were
made outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Leave inference mode and record gradients, whatever the caller's mode; forward and backward pass belong in here.

    Core's own switch for training is on meanwhile: without it some networks use kernels that have no gradient.
    """
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def normal_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that autograd accepts. Call it outside inference mode; does not track the original."""
    return tensor.detach().clone()


def normal_view(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that autograd accepts over the memory of an inference tensor: no copy. Call outside inference mode."""
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    with torch.no_grad():
        return view.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def overwriting_allowed() -> Any:
    """In here, a network may overwrite activations that the backward pass needs: it gets copies."""
    return torch.autograd.graph.saved_tensors_hooks(_own_copy, lambda saved: saved)


def _own_copy(saved: torch.Tensor) -> torch.Tensor:
    # Weights have no history and are not overwritten: only activations are copied.
    return saved if saved.grad_fn is None else saved.detach().clone()


class StandIns:
    """Stand-ins for a module's weights that autograd accepts, on one device and in one dtype.

    Inference tensors are stood in for by a view of the same memory. Weights that lie on another device than `device`
    (offloaded, or managed as dynamic VRAM) or have not `dtype` (where one is asked for) are copied, once, at the first
    use. skip: prefixes of weights that are not used. `close` drops them.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        skip: tuple[str, ...] = (),
    ) -> None:
        self._module = module
        self._device = device
        self._dtype = dtype
        self._skip = skip
        self._made: list[tuple[dict[str, Any], str, torch.Tensor]] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts the module computes with the stand-ins. May be nested."""
        if self._made is None:
            self._made = list(self._make())
        originals = [(weights, name, weights[name]) for weights, name, _ in self._made]
        try:
            for weights, name, stand_in in self._made:
                weights[name] = stand_in
            yield
        finally:
            for weights, name, original in originals:
                weights[name] = original

    def close(self) -> None:
        """Free the copies; a later use makes them anew."""
        self._made = None

    def _make(self) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
        for path, module in self._module.named_modules():
            for weights in (module._parameters, module._buffers):
                for name, tensor in weights.items():
                    full = f"{path}.{name}" if path else name
                    if tensor is None or full.startswith(self._skip or ("\0",)):
                        continue
                    stand_in = self._stand_in(tensor)
                    if stand_in is not tensor:
                        is_parameter = weights is module._parameters
                        yield weights, name, torch.nn.Parameter(stand_in, False) if is_parameter else stand_in

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
        device = self._device or tensor.device
        if tensor.device != device or tensor.dtype != dtype:
            return tensor.detach().to(device=device, dtype=dtype, copy=True)
        if not tensor.is_inference():
            return tensor
        return normal_view(tensor) if type(tensor) in (torch.Tensor, torch.nn.Parameter) else normal_copy(tensor)


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated blocks of a network, whose activations can be computed anew: what its lists and sequences hold."""
    found: list[torch.nn.Module] = []
    is_list = isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential))
    for child in module.children():
        # Core calls the members of lists, of sequences and of modules without a forward of their own.
        opaque = type(child).forward is not torch.nn.Module.forward and not isinstance(child, torch.nn.Sequential)
        if is_list and opaque and any(True for _ in child.children()):
            found.append(child)
        else:
            found += blocks_of(child)
    return found


@contextmanager
def checkpointed(module: torch.nn.Module, stand_ins: StandIns) -> Iterator[None]:
    """Forward passes begun in here keep only the inputs of the module's blocks and compute the rest again (Chen et
    al., arXiv 1604.06174), in the backward pass, which may come later.
    """
    blocks = blocks_of(module)
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _recomputed(block.forward, stand_ins)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _recomputed(forward: Callable[..., Any], stand_ins: StandIns) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        # Flattening also takes a snapshot of the dictionaries that core passes from block to block and changes.
        values, structure = tree_flatten((args, kwargs))
        places = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
        layout: list[Any] = []

        def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            filled = list(values)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            again, named = tree_unflatten(filled, structure)
            with stand_ins.installed():
                outputs, layout[:] = _leaves(forward(*again, **named))
            return outputs

        tensors = [values[place] for place in places]
        for place in places:
            values[place] = None  # the function below keeps them
        outputs = _Recompute.apply(run, *tensors)
        return tree_unflatten(outputs, layout[0])

    return call


def _leaves(value: Any) -> tuple[tuple[Any, ...], list[Any]]:
    leaves, structure = tree_flatten(value)
    return tuple(leaves), [structure]


class _Recompute(torch.autograd.Function):
    """run(*tensors) -> tensors, without its graph. torch's own checkpoint minds neither weights that are put in place
    for the time of a call nor activations overwritten in place, of which core has many.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[torch.Tensor, ...]], *tensors: torch.Tensor) -> Any:
        ctx.run = run
        ctx.kept = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            return run(*(kept.clone() for kept in ctx.kept))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        leaves = [kept.requires_grad_(i in wanted) for i, kept in enumerate(ctx.kept)]
        with torch.enable_grad(), overwriting_allowed():
            outputs = ctx.run(*(leaf.clone() for leaf in leaves))
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad and g is not None]
        inputs = [leaves[i] for i in wanted]
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
        result: list[torch.Tensor | None] = [None] * (1 + len(leaves))
        for i, gradient in zip(wanted, found, strict=True):
            result[1 + i] = gradient
        ctx.kept = []
        return tuple(result)


class DifferentiableCall:
    """Calls a function of a module so that gradients reach its inputs. The module itself is not changed.

    device, dtype, skip: see `StandIns`. overwrites: whether the module changes tensors in place that the backward pass
    needs; they are then kept as copies. checkpoint_blocks: trade a second forward pass for the memory of the blocks'
    activations; may be set at any time.
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
        self._module = module
        self._function = function
        self._stand_ins = StandIns(module, device, dtype, skip)
        self._overwrites = overwrites
        self.checkpoint_blocks = False

    def __call__(self, *args: Any) -> Any:
        """Call with gradients; the caller has entered `gradients_enabled`."""
        with self._stand_ins.installed():
            if self.checkpoint_blocks:
                with checkpointed(self._module, self._stand_ins):
                    return self._function(*args)
            if self._overwrites:
                with overwriting_allowed():
                    return self._function(*args)
            return self._function(*args)

    def close(self) -> None:
        """Free the copies; a later call makes them anew."""
        self._stand_ins.close()
