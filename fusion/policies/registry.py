"""The list of policies that users choose from: each enters itself, from its own file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .base import Policy

P = TypeVar("P", bound=Policy)
_listed: dict[int, type[Policy]] = {}


def listed(place: int) -> Callable[[type[P]], type[P]]:
    """Enters a policy in the list.

    Args:
        place: where in the list, counted from 0. The order is part of the router's schema: places are neither changed
            nor used again; a new policy takes the next one.

    Raises:
        ValueError: the place, or the policy's name, is taken.
    """

    def enter(policy: type[P]) -> type[P]:
        taken = _listed.get(place)
        if taken is not None or policy.name in choices():
            raise ValueError(f"{policy.__name__} cannot be listed as {policy.name!r} at {place}: already taken")
        _listed[place] = policy
        return policy

    return enter


def choices() -> dict[str, type[Policy]]:
    """The policies listed so far by name, in their order."""
    return {policy.name: policy for _, policy in sorted(_listed.items())}
