"""Random draws of tests: each test's own, whatever ran before it, in this process or another."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def seed_of(name: str) -> int:
    """A seed of 32 bits that belongs to ``name``, the same in every process (Python's ``hash`` is not)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def seed_draws(name: str) -> None:
    """Seed by a name what draws without a generator of its own: torch on every device, NumPy and ``random``."""
    seed = seed_of(name)
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


@contextmanager
def draws_of(name: str) -> Iterator[None]:
    """``seed_draws`` inside; outside as if nothing had been drawn in between (on a GPU torch goes on from there)."""
    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    seed_draws(name)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])
        random.setstate(states[2])


class TorchDraws:
    """torch as a generator that hypothesis seeds before every example (``hypothesis.register_random``).

    ``random`` and NumPy it knows by itself. Without this an example that failed would draw other tensors when it is
    tried again.
    """

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> Any:
        return torch.get_rng_state()

    def setstate(self, state: Any) -> None:
        torch.set_rng_state(state)
