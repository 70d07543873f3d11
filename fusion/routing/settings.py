"""A policy and its refinement changed by settings under the names users know them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..policies import (
    POLICIES,
    RECOMMENDED,
    KLSoft,
    PassPolicy,
    Policy,
    ScoredPolicy,
    Setting,
    StaticPolicy,
    settings_of,
    title,
)
from ..records import Replay
from .refinement import Refinement

NAMED: dict[str, Policy] = {"recommended": RECOMMENDED, **{name: make() for name, make in POLICIES.items()}}
"""Policies that need nothing but their name."""

SETTINGS: tuple[Setting, ...] = (*settings_of(KLSoft), *settings_of(Refinement))
"""All that users can set beside the policy, in the order of the nodes' inputs and of what can be compared."""

_FIELDS = {setting.name: setting.field for setting in SETTINGS}
_GENERAL = {field.name for field in fields(Refinement)}


def with_settings(policy: Policy, refinement: Refinement, settings: Mapping[str, Any]) -> tuple[Policy, Refinement]:
    """Both, with some settings changed.

    Args:
        settings: "policy" takes the one of that name in :data:`NAMED`; all others, and fields of ``Refinement`` and of
            the policy, take the value given. What the policy does not have is passed over.

    Raises:
        ValueError: a value out of its range.
    """
    changes = {_FIELDS.get(name, name): value for name, value in settings.items() if name != "policy"}
    policy = NAMED[settings["policy"]] if "policy" in settings else policy
    own = {field.name for field in fields(policy)} - _GENERAL
    policy = replace(policy, **{name: value for name, value in changes.items() if name in own})
    return policy, replace(refinement, **{name: value for name, value in changes.items() if name in _GENERAL})


def heeds(policy: Policy, name: str) -> bool:
    """Whether a policy has that setting: a replayed plan has none, its decisions are made."""
    if isinstance(policy, Replay):
        return False
    return _FIELDS.get(name, name) in _GENERAL | {field.name for field in fields(policy)}


def acting(policy: Policy) -> tuple[str, ...]:
    """Names of the settings that can change what a policy does; the others are ignored where it is chosen."""
    if isinstance(policy, StaticPolicy):
        return ("emphasis",) if policy.is_sum else ()
    if isinstance(policy, PassPolicy):
        return ("emphasis",)
    if not isinstance(policy, ScoredPolicy):
        return ("floor", "start", "end", "cap", "freeze_after", "emphasis")
    passed_over = set() if policy.hard else {"hysteresis"}
    return tuple(its.name for its in SETTINGS if heeds(policy, its.name) and its.name not in passed_over)


def name_of(policy: Policy) -> str:
    """What users call it."""
    return title(policy.settings())
