"""What is left of the last runs of a model, and which of them made a latent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .execution import Place, executing, sources

KEPT_RUNS = 64
Result = TypeVar("Result")


@dataclass(frozen=True)
class Origin:
    """Where a node's latent comes from, to find the run when values alone do not tell.

    Attributes:
        prompt: the running workflow in API format.
        node: id of the node that asks.
        input: its input that the latent arrived at.
    """

    prompt: Mapping[str, Any]
    node: str | None
    input: str = "latent"


class Kept(Generic[Result]):
    """Results of the last runs, newest first, each with the latent it made and the node that made it."""

    def __init__(self) -> None:
        self._runs: deque[tuple[Tensor, Place | None, Result]] = deque(maxlen=KEPT_RUNS)

    def __iter__(self) -> Iterator[Result]:
        return (result for _, _, result in self._runs)

    def add(self, samples: Any, result: Result) -> None:
        """Keep a result.

        Args:
            samples: the latent ``[batch, channels, ...]`` or nested, as the node that executes now will hand it on.
            result: of the run.
        """
        self._runs.appendleft((flat(samples).clone(), executing(), result))

    def find(self, samples: Any, origin: Origin | None = None) -> Result | None:
        """The result of the run that made these samples: by their values, else by the nodes that they come from."""
        given = flat(samples)
        for made, _, result in self._runs:
            if _same(made, given):
                return result
        now = executing()
        for node in () if origin is None else sources(origin.prompt, origin.node, origin.input):
            runs = [(place.item, result) for _, place, result in self._runs if place is not None and place.node == node]
            if runs:
                item = None if now is None else now.item
                return next((result for index, result in runs if index == item), runs[0][1])
        return None


def flat(samples: Any) -> Tensor:
    """A latent, nested ones included, as ``[batch, numbers]`` on the CPU: as core packs them for its samplers."""
    parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    return torch.cat([part.detach().cpu().reshape(part.shape[0], -1) for part in parts], dim=1)


def _same(made: Tensor, given: Tensor) -> bool:
    if made.shape != given.shape:
        return False
    # As core casts it to the dtype in which nodes hand latents on; NaN is NaN.
    return torch.equal(made.to(given.dtype).nan_to_num(nan=1e30), given.nan_to_num(nan=1e30))
