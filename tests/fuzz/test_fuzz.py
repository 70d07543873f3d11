"""Every parser, quickly; what was found once; and that the guard sees what it forbids."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from . import cases
from .guard import GUARD
from .parsers import PARSERS, setting

CORPUS = sorted(file for file in (Path(__file__).parent / "corpus").iterdir() if not file.name.startswith("plans-"))


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_faults_that_were_found_stay_mended(file):
    parser = PARSERS[file.name.partition("-")[0]]
    cases.warm(parser)
    assert cases.Outcome().case(parser, file.read_bytes()) is None


@pytest.mark.parametrize("name", PARSERS)
def test_input_made_worse_is_read_or_refused(name, record_property):
    parser = PARSERS[name]
    outcome = cases.fuzz(parser, parser.quick, seed=1)
    record_property("inputs read or refused", f"{outcome.read}, {outcome.refused}")
    assert outcome.faults == {} and outcome.read
    assert outcome.grown < 100e6


def _of(action) -> cases.Parser:
    """A parser that does something before it refuses."""

    def parse(data: bytes) -> None:
        try:
            action()
        except OSError:
            raise KeyError("refused") from None

    return cases.Parser(lambda: [b""], parse, (KeyError,))


def _executed_from(folder: Path) -> None:
    file = folder / "evil.py"
    with GUARD.resting():
        file.write_text("pass")
    exec(compile(file.read_text(), str(file), "exec"))  # noqa: S102 - that it is seen is what is tested


FORBIDDEN = {
    "socket": socket.socket,
    "look-up": lambda: socket.getaddrinfo("localhost", 80),
    "process": lambda: subprocess.run([sys.executable, "-V"]),
    "shell": lambda: os.system("true"),
    "reading elsewhere": Path("/etc/hostname").read_text,
    "writing to the models": lambda: (setting.LORAS / "x").write_text("x"),
    "writing elsewhere": lambda: os.mkdir("/fuzz"),
    "listing elsewhere": lambda: os.listdir("/"),
    "code beside a model": lambda: _executed_from(setting.ENCODERS),
    "code in the output": lambda: _executed_from(setting.OUTPUT),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_guard_sees_what_is_caught_again(what):
    assert cases.Outcome().case(_of(FORBIDDEN[what]), b"") is not None


def test_the_guard_lets_parsers_read_and_write_where_they_may():
    def fine() -> None:
        (setting.OUTPUT / "fine").write_text("x")
        (setting.OUTPUT / "fine").unlink()
        os.listdir(setting.LORAS)

    assert cases.Outcome().case(_of(fine), b"") is None


FAULTS = {
    "KeyError in test_fuzz.py": lambda: {}["x"],
    "too much memory": lambda: bytearray(os.urandom(1 << 20) * 200),
    "an error that cannot be shown": lambda: _refuse("\x1b[2J"),
    "an error for programmers": lambda: _refuse("set weights_only=False"),
}


def _refuse(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault):
    parser = cases.Parser(lambda: [b""], lambda data: FAULTS[fault](), (ValueError,))
    assert str(cases.Outcome().case(parser, b"")).startswith(fault)


def test_slowness_is_seen(monkeypatch):
    monkeypatch.setattr(cases, "SECONDS", 0.0)
    assert "more than" in str(cases.Outcome().case(_of(lambda: sum(range(10_000))), b""))
