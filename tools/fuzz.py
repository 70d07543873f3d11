"""Parsers of ours on input made worse at random: refused by a named error or read, soon, and in bounded memory.

    make fuzz ARGS="--cases 100000 --seed 1 plans"

What fails is kept in output/fuzz; once mended it belongs into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import resource
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz_parsers import PARSERS, Parser
from repo_paths import REPO, link_package

SECONDS = 5.0  # for one case
KEPT = REPO / "output" / "fuzz"


@dataclass
class Outcome:
    """What came of many cases.

    Attributes:
        read, refused: how many.
        faults: by what went wrong, the input that did it first, and how many did.
        slowest: seconds of one case.
        grown: bytes by which the process has grown.
    """

    read: int = 0
    refused: int = 0
    faults: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    slowest: float = 0.0
    grown: int = 0

    def case(self, parser: Parser, data: bytes) -> str | None:
        """Run one; returns what went wrong, if anything did."""
        began, fault = time.perf_counter(), None
        try:
            parser.parse(data)
            self.read += 1
        except parser.refusals() as error:
            self.refused += 1
            if not str(error).isprintable() or len(str(error)) > 2000:
                fault = "an error that cannot be shown"
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}"
        took = time.perf_counter() - began
        self.slowest = max(self.slowest, took)
        if took > SECONDS:
            fault = f"more than {SECONDS:g} s"
        if fault is not None:
            first, number = self.faults.get(fault, (data, 0))
            self.faults[fault] = first, number + 1
        return fault


def fuzz(parser: Parser, cases: int, seed: int) -> Outcome:
    """That many cases, the same for the same seed."""
    random, seeds, outcome = Random(seed), parser.seeds(), Outcome()
    for good in seeds:
        parser.parse(good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(cases):
        outcome.case(parser, random.choice(parser.mutations)(random.choice(seeds), random))
    outcome.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return outcome


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("parsers", nargs="*", default=list(PARSERS), help=", ".join(PARSERS))
    options.add_argument("--cases", type=int, default=100_000, help="of each parser")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    sys.path.insert(0, str(link_package()))
    failed = False
    for name in asked.parsers:
        outcome = fuzz(PARSERS[name], asked.cases, asked.seed)
        number = sum(count for _, count in outcome.faults.values())
        print(
            f"{name}: {asked.cases} cases, {outcome.read} read, {outcome.refused} refused, {number} faults; slowest "
            f"{outcome.slowest:.3f} s, grown by {outcome.grown / 1e6:.0f} MB"
        )
        kinds = collections.Counter({fault: count for fault, (_, count) in outcome.faults.items()})
        for fault, count in kinds.most_common():
            data = outcome.faults[fault][0]
            KEPT.mkdir(parents=True, exist_ok=True)
            file = KEPT / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            print(f"  {count} x {fault}: {file}")
        failed |= bool(outcome.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
