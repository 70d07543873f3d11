"""The same low-rank update in a basis in which its loudness can be read off the hidden features."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from ..adapters import peak

# Of the largest direction: what is fainter is lost in float32 anyway, and has no direction to speak of.
FAINTEST = 1e-6


@dataclass(frozen=True)
class Basis:
    """An up-projection as ``turned @ root``.

    Attributes:
        turned: ``[out, rank]``, with orthonormal columns, so that ``||turned z|| = ||z||``. Where the up-projection has
            a lower rank, the columns that it has no use for are zero.
        root: ``[rank, rank]`` float32.
    """

    turned: Tensor
    root: Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(t.numel() * t.element_size() for t in (self.turned, self.root))

    def down(self, down: Tensor) -> Tensor:
        """The down-projection ``[rank, in, *kernel]`` float32 that belongs to ``turned``."""
        return (self.root @ down.flatten(1)).reshape(down.shape)


def orthonormal(up: Tensor, dtype: torch.dtype = torch.float32) -> Basis:
    """The basis of an up-projection ``[out, rank]`` float32; one that is no finite numbers stays as it is.

    Args:
        up: whose columns are turned, computed in float64.
        dtype: that they are rounded to.
    """
    if not math.isfinite(peak(up)):
        return Basis(up.to(dtype), torch.eye(up.shape[1]))
    wide = up.double()
    gram = wide.T @ wide
    root, failed = torch.linalg.cholesky_ex(gram, upper=True)
    steps = root.diagonal()
    if not failed and steps.min() > 1e3 * FAINTEST * steps.max():
        turned = torch.linalg.solve_triangular(root, wide, upper=True, left=False)
    else:
        # By directions: the Gram matrix is singular, or as good as.
        squares, directions = torch.linalg.eigh(gram)
        sizes = squares.clamp_min(0).sqrt()
        loud = sizes > FAINTEST * sizes.max().clamp_min(1e-30)
        root = torch.where(loud, sizes, 0.0)[:, None] * directions.T
        turned = (wide @ directions) * torch.where(loud, 1 / sizes.clamp_min(1e-30), 0.0)
    return Basis(turned.to(dtype), root.float())


@dataclass
class Bases:
    """Bases that were asked for before, so that a file that is loaded again, at another strength, is soon ready.

    Those asked for longest ago are forgotten beyond ``most`` bytes.
    """

    most: int
    _found: OrderedDict[Hashable, Basis] = field(default_factory=OrderedDict)
    _size: int = 0
    _lock: Lock = field(default_factory=Lock)

    def of(self, key: Hashable, make: Callable[[], Basis]) -> Basis:
        """The basis that a key stands for."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        basis = make()
        with self._lock:
            self._size += basis.size - (self._found[key].size if key in self._found else 0)
            self._found[key] = basis
            while self._size > self.most:
                self._size -= self._found.popitem(last=False)[1].size
        return basis
