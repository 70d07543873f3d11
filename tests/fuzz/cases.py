"""Cases of a parser: input made worse at random is read or refused by a named error, soon, and in bounded memory."""

from __future__ import annotations

import contextlib
import functools
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from lora_conductor.host.core import printable

from . import mutations
from .guard import GUARD

SECONDS = 5.0  # of the processor, for one case: it may be busy with others
GROWTH, ALWAYS = (
    10,
    64e6,
)  # bytes of memory for a byte of input, and what is always allowed: allocators take it in blocks
MOST = 1e9  # bytes, whatever the input
MOST_TOLD = 4100  # characters of an error


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        seeds: good input, of all kinds there are.
        parse: reads input and uses what it found, as far as that is cheap.
        refusals: the errors by which it may refuse; any other is a fault.
        mutations: how input is made worse.
        quick: cases in the tests.
    """

    seeds: Callable[[], list[bytes]]
    parse: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    mutations: tuple[Callable[[bytes, Random], bytes], ...] = (mutations.bytes_of,)
    quick: int = 300


@dataclass
class Outcome:
    """What came of many cases.

    Attributes:
        read, refused: how many.
        faults: by what went wrong, the input that did it first, and how many did.
        slowest: seconds of the processor for one case.
        grown: bytes by which the process has grown.
    """

    read: int = 0
    refused: int = 0
    faults: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    slowest: float = 0.0
    grown: int = 0

    def case(self, parser: Parser, data: bytes) -> str | None:
        """Run one; returns what went wrong, if anything did."""
        before = _begin_peak()
        began, fault = time.process_time(), None
        with GUARD.watching() as tried:
            try:
                parser.parse(data)
                self.read += 1
            except parser.refusals as error:
                self.refused += 1
                fault = untellable(str(error))
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                fault = f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}"
        took = time.process_time() - began
        self.slowest = max(self.slowest, took)
        if took > SECONDS:
            fault = f"more than {SECONDS:g} s"
        if _peak() - before > min(GROWTH * len(data) + ALWAYS, MOST):
            fault = "too much memory"
        if tried:
            fault = re.sub(r"0x[0-9a-f]+|/[^ ']*/", "", tried[0])[:80]
        if fault is not None:
            first, number = self.faults.get(fault, (data, 0))
            self.faults[fault] = first, number + 1
        return fault


def fuzz(parser: Parser, cases: int, seed: int, running: Path | None = None) -> Outcome:
    """That many cases, the same for the same seed.

    Args:
        parser: what is fuzzed.
        cases: how many.
        seed: of their choice.
        running: a file that holds the input while it is parsed: all that is left when a process is ended by it.
    """
    random, seeds, outcome = Random(seed), warm(parser), Outcome()
    for good in seeds:
        with GUARD.watching() as tried:
            parser.parse(good)
        assert not tried, tried
    before = _peak()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(running.open("wb", buffering=0)) if running is not None else None
        for _ in range(cases):
            data = random.choice(parser.mutations)(random.choice(seeds), random)
            if file is not None:
                file.seek(0)
                file.truncate()
                file.write(data)
            outcome.case(parser, data)
    if running is not None:
        running.unlink()
    outcome.grown = _begin_peak() - before
    return outcome


@functools.cache
def warm(parser: Parser) -> list[bytes]:
    """Good input, read once: what libraries do when they are loaded is not the input's doing."""
    seeds = parser.seeds()
    for good in seeds:
        parser.parse(good)
    return seeds


def untellable(text: str) -> str | None:
    """Core's log and the page have to show it, in any encoding of theirs."""
    if len(text) > MOST_TOLD or text != printable(text):
        return "an error that cannot be shown"
    if "Traceback" in text or "weights_only" in text:
        return f"an error for programmers: {text:.60}"
    return None


def _begin_peak() -> int:
    """Bytes resident now; the kernel counts the peak anew from here."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


def _peak() -> int:
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
