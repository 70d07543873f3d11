"""Settings by name: which belong to the refinement, which to the policy, and which to neither."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from lora_conductor.fusion.policies import POLICIES, RECOMMENDED, KLSoft, Sum, title
from lora_conductor.fusion.records import Plan, Replay
from lora_conductor.fusion.routing import NAMED, SETTINGS, Refinement, heeds, name_of, with_settings

# Saved workflows know this order, in which the inputs stand: only ever append, in Refinement and not here.
FIRST = [
    *("temperature", "balance", "score", "even_out", "floor", "smoothing", "hysteresis", "time_lead", "layer_prior"),
    *("blur", "start", "end", "cap", "granularity", "group_attention", "follow_cond", "freeze_after", "emphasis"),
]


def test_order_never_changes() -> None:
    names = [setting.name for setting in SETTINGS]
    assert names[: len(FIRST)] == FIRST
    assert len(set(names)) == len(names)


def test_every_field_of_the_refinement_can_be_set() -> None:
    assert {field.name for field in fields(Refinement)} <= {setting.field for setting in SETTINGS}


def test_each_setting_goes_where_it_belongs() -> None:
    settings = {"policy": "kl_soft", "temperature": 0.7, "balance": 1.0, "floor": 0.3, "emphasis": 2.0}
    policy, refinement = with_settings(RECOMMENDED, Refinement(smoothing=0.7), settings)
    assert policy == KLSoft(temperature=0.7)
    assert refinement == Refinement(smoothing=0.7, lean=1.0, floor=0.3, emphasis=2.0)


def test_what_a_policy_does_not_have_is_passed_over() -> None:
    assert with_settings(Sum(), Refinement(), {"temperature": 0.7}) == (Sum(), Refinement())
    assert not heeds(Sum(), "temperature") and heeds(KLSoft(), "temperature") and heeds(Sum(), "balance")


def test_a_replayed_plan_has_no_settings() -> None:
    assert not heeds(Replay(Plan((), {"policy": "paper"}, {}, (), (), ())), "emphasis")


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        with_settings(Sum(), Refinement(), {"floor": 2.0})


def test_policies_by_the_names_users_know() -> None:
    assert set(NAMED) == {"recommended", *POLICIES}
    assert name_of(RECOMMENDED) == "recommended"
    assert name_of(KLSoft()) == name_of(KLSoft(temperature=2.0)) == "kl_soft"


def test_a_policy_has_the_name_that_users_choose() -> None:
    assert title(RECOMMENDED.settings()) == "recommended"
    changed = replace(RECOMMENDED, tokens=1)
    assert title(changed.settings()) == changed.name != "recommended"
    assert [title(make().settings()) for make in POLICIES.values() if make() != RECOMMENDED] == [
        name for name, make in POLICIES.items() if make() != RECOMMENDED
    ]
