"""Where a layer has the rows of the model call's batch."""

from __future__ import annotations

from enum import Enum

from torch import Tensor


class Rows(Enum):
    """Of a layer's features.

    FIRST is the usual place. SECOND is that of layers that have the sequence first. MIXED stands for all features whose
    rows are others than the call's: tokens that were gathered from all samples for an expert, the batch folded into the
    tokens or cut into chunks, one row for all. Nobody can tell there which row is whose.
    """

    FIRST = 0
    SECOND = 1
    MIXED = 2

    @staticmethod
    def of(features: Tensor, rows: int, is_conv: bool) -> Rows:
        """Of ``[..., channels]`` or, of a convolution, ``[_, channels, *space]``.

        Args:
            rows: of the call; 0 where that is not known.
        """
        if rows == 0 or (features.ndim > 1 and features.shape[0] == rows):
            return Rows.FIRST
        # A first dimension that the rows divide may hold them with their tokens, and the second as many of something
        # else by chance (Krea 2: layers of its text encoder): nobody can tell then.
        told = rows == 1 or features.shape[0] % rows
        if not is_conv and features.ndim == 3 and features.shape[1] == rows and told:
            return Rows.SECOND
        return Rows.MIXED

    def arranged(self, features: Tensor) -> Tensor:
        """A linear layer's features with the rows first; mixed ones as the tokens of a single row."""
        if self is Rows.SECOND:
            return features.transpose(0, 1)
        if self is Rows.MIXED:
            return features.reshape(1, -1, features.shape[-1])
        return features

    def restored(self, arranged: Tensor, like: Tensor) -> Tensor:
        """Back to the place and shape of ``like``."""
        return (arranged.transpose(0, 1) if self is Rows.SECOND else arranged).reshape(like.shape)
