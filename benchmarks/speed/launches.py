"""Counting what a device would be asked to do: operations that compute or copy, the bytes they move, and where the host
has to wait for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They make a tensor, but ask nothing of the device.
NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
# Under inference mode they come as they are; on a device each is a view.
VIEWS = {"_unsafe_view", "_reshape_alias"}
WAITS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "is_nonzero"}


class Launches(TorchDispatchMode):
    """Counts operations by name. Views are left out, and composite ones counted by what they are made of.

    Attributes:
        counts: by name.
        bytes: read and written.
        on_host: whether what is computed at the moment is computed on the host, whatever the device is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self.on_host = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.on_host:
            return func(*args, **kwargs)
        if func.namespace == "aten" and func not in (torch.ops.aten.linear.default,):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not (name in NO_WORK or name in VIEWS or _is_view(func)):
            self.counts[name] += 1
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result

    @property
    def total(self) -> int:
        return self.counts.total()


class Waits(TorchFunctionMode):
    """Counts, by name, calls that have to wait for the device: numbers read, and selections by a boolean tensor.

    Attributes:
        within: those in a model call.
        beside: those between calls.
        on_host: whether what is read at the moment lies on the host, whatever the device is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.within: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self._counts = self.beside
        self.on_host = False

    def model_call(self, apply_model: Any, args: Any) -> Any:
        """Core's model function wrapper."""
        self._counts = self.within
        try:
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            self._counts = self.beside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = "" if self.on_host else getattr(func, "__name__", "")
        if name in WAITS:
            self._counts[name] += 1
        elif name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self._counts["boolean index"] += any(isinstance(i, Tensor) and i.dtype == torch.bool for i in index)
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
