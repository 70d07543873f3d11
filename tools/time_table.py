"""How long the tests of each room took, from pytest's reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

# Rooms of tests that are told apart by the folder inside: the others have one row each.
DIVIDED = {"host"}


class Report(Protocol):
    """What is read of a ``pytest.TestReport``."""

    nodeid: str
    when: str | None
    duration: float


def room_of(nodeid: str) -> str:
    """``tests/fusion/layers/test_x.py::test_y`` is of fusion, ``tests/host/loras/...`` of host/loras.

    Tests that lie in no folder are about the whole pack.
    """
    _, *folders = nodeid.partition("::")[0].split("/")[:-1] or [""]
    if not folders:
        return "pack"
    return "/".join(folders[: 2 if folders[0] in DIVIDED else 1])


def time_per_room(reports: Iterable[Report]) -> list[tuple[str, int, float]]:
    """(room, tests that ran, seconds), by name; fixtures count where they were made and taken down.

    The seconds are those of all processes together.
    """
    tests: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for report in reports:
        room = room_of(report.nodeid)
        tests[room] += report.when == "call"
        seconds[room] += report.duration
    return [(room, tests[room], seconds[room]) for room in sorted(seconds)]


def lines(rows: list[tuple[str, int, float]]) -> list[str]:
    """The rows of ``time_per_room`` as lines, with their sum below when there are several."""
    if len(rows) > 1:
        rows = [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]
    return [f"{seconds:>8.1f} s  {tests:>5} tests  {room}" for room, tests, seconds in rows]
