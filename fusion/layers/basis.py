"""The same low-rank update in a basis in which its loudness can be read off the hidden features."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the largest direction: what is fainter is lost in float32 anyway, and has no direction to speak of.
FAINTEST = 1e-6


def orthonormal(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product with orthonormal columns in ``up``, so that ``||up z|| = ||z||``.

    Args:
        up: ``[out, rank]`` float32.
        down: ``[rank, in, *kernel]`` float32.

    Returns:
        Both, shaped as before. Where the product has a lower rank, the columns that it has no use for are zero. Factors
        that are no finite numbers come back as they are.
    """
    if not bool(up.isfinite().all()):
        return up, down
    wide = up.double()
    gram = wide.T @ wide
    root, failed = torch.linalg.cholesky_ex(gram, upper=True)
    steps = root.diagonal()
    if not failed and steps.min() > 1e3 * FAINTEST * steps.max():
        turned = torch.linalg.solve_triangular(root, wide, upper=True, left=False)
    else:
        # By directions of the product: the Gram matrix is singular, or as good as.
        squares, directions = torch.linalg.eigh(gram)
        sizes = squares.clamp_min(0).sqrt()
        loud = sizes > FAINTEST * sizes.max().clamp_min(1e-30)
        root = torch.where(loud, sizes, 0.0)[:, None] * directions.T
        turned = (wide @ directions) * torch.where(loud, 1 / sizes.clamp_min(1e-30), 0.0)
    mixed = root @ down.double().flatten(1)
    return turned.to(up), mixed.to(down).reshape(down.shape)
