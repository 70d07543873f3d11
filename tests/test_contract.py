"""Node ids, inputs, order, types, defaults, choices and outputs against a snapshot that only grows."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from comfy_server import ComfyServer
from contract import SNAPSHOT, broken, contract_of, dumps

OLD = json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_saved_workflows_are_read_as_they_were_meant(server: ComfyServer) -> None:
    now = contract_of(server.object_info())
    assert broken(OLD, now) == []
    assert now == OLD, "something was appended: run `make contract` and commit the snapshot"


def test_the_snapshot_is_as_it_is_written() -> None:
    assert dumps(OLD) == SNAPSHOT.read_text(encoding="utf-8")


def inputs(contract: dict[str, Any]) -> list[dict[str, Any]]:
    return contract["KLLayerRouter"]["inputs"]


BREAKS: dict[str, Any] = {
    "a node is gone": lambda c: c.pop("RoutingReport"),
    "an input is gone": lambda c: inputs(c).pop(),
    "an input comes between": lambda c: inputs(c).insert(2, {"name": "new", "group": "required", "type": "INT"}),
    "two inputs change places": lambda c: inputs(c).insert(1, inputs(c).pop(2)),
    "an input is renamed": lambda c: inputs(c)[1].update(name="rule"),
    "another type": lambda c: inputs(c)[2].update(type="INT"),
    "another default": lambda c: inputs(c)[2].update(default=0.123),
    "optional becomes required": lambda c: inputs(c)[-1].update(group="required"),
    "a choice is gone": lambda c: inputs(c)[1]["choices"].pop(0),
    "choices in another order": lambda c: inputs(c)[1]["choices"].reverse(),
    "a smaller maximum": lambda c: inputs(c)[2].update(max=0.01),
    "an output is gone": lambda c: c["RoutingReport"]["outputs"].pop(),
    "an output is renamed": lambda c: c["RoutingReport"]["outputs"][1].__setitem__(0, "text"),
    "no longer an output node": lambda c: c["RoutingReport"].update(output_node=False),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_workflows_is_seen(name: str) -> None:
    now = copy.deepcopy(OLD)
    BREAKS[name](now)
    assert len(broken(OLD, now)) >= 1


def test_appending_breaks_nothing() -> None:
    now = copy.deepcopy(OLD)
    now["New"] = now["RoutingReport"]
    inputs(now).append({"name": "new", "group": "optional", "type": "INT", "default": 0})
    inputs(now)[1]["choices"].append("new")
    inputs(now)[2].update(max=1e9)
    now["RoutingReport"]["outputs"].append(["new", "STRING"])
    assert broken(OLD, now) == []
