"""The table of time per room at the end of a test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import time_table

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


@pytest.mark.parametrize(
    ("nodeid", "room"),
    [
        ("tests/fusion/layers/test_layers.py::test_x[a/b-c::d]", "fusion"),
        ("tests/host/loras/test_lora_files.py::test_x", "host/loras"),
        ("tests/host/test_x.py::TestY::test_z", "host"),
        ("tests/tools/test_conftest.py::test_x", "tools"),
        ("tests/test_locales.py::test_x", "pack"),
    ],
)
def test_the_room_of_a_test(nodeid: str, room: str) -> None:
    assert time_table.room_of(nodeid) == room


def test_fixtures_and_tests_of_a_room_add_up() -> None:
    phases = [
        ("tests/host/maps/test_a.py::x", "setup", 2.0),
        ("tests/host/maps/test_a.py::x", "call", 1.0),
        ("tests/host/maps/test_b.py::x", "setup", 0.0),  # skipped there
        ("tests/fusion/test_c.py::x", "call", 0.25),
        ("tests/fusion/test_c.py::x", "teardown", 0.25),
    ]
    reports = [SimpleNamespace(nodeid=nodeid, when=when, duration=seconds) for nodeid, when, seconds in phases]
    rows = time_table.time_per_room(reports)
    assert rows == [("fusion", 1, 0.5), ("host/maps", 1, 3.0)]
    assert [line.split() for line in time_table.lines(rows)] == [
        ["0.5", "s", "1", "tests", "fusion"],
        ["3.0", "s", "1", "tests", "host/maps"],
        ["3.5", "s", "2", "tests", "all"],
    ]
    assert len(time_table.lines(rows[:1])) == 1


def test_the_table_of_several_processes() -> None:
    """The real conftest under pytest-xdist: what the processes measured comes together."""
    tests = CONFTEST.parent
    files = [tests / "tools" / "test_setup_env.py", tests / "fusion" / "routing" / "test_settings.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
    done = subprocess.run([*command, *map(str, files)], cwd=tests.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("time per room")[2].splitlines()[1:4]
    assert [line.split()[-1] for line in table] == ["fusion", "tools", "all"]
    ran = [int(line.split()[2]) for line in table]
    assert ran[2] == ran[0] + ran[1] and f"{ran[2]} passed" in done.stdout
    assert float(table[2].split()[0]) > 0
