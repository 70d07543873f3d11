"""Parsers of ours on input made worse at random: refused by a named error or read, soon, and in bounded memory.

    make fuzz ARGS="--cases 100000 --seed 1 plans"

What fails is kept in output/fuzz; once mended it belongs into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import hashlib
import logging
import os
import sys
import time
import warnings

from ..conftest import REPO  # first: it makes ComfyUI importable
from .cases import fuzz
from .parsers import PARSERS

KEPT = REPO / "output" / "fuzz"


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("parsers", nargs="*", default=list(PARSERS), help=", ".join(PARSERS))
    options.add_argument("--cases", type=int, default=100_000, help="of each parser")
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    logging.disable(logging.CRITICAL)
    os.environ["TQDM_DISABLE"] = "1"  # transformers shows a bar for every file
    warnings.filterwarnings("ignore")
    faulthandler.enable()
    KEPT.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in asked.parsers:
        began = time.process_time()
        outcome = fuzz(PARSERS[name], asked.cases, asked.seed, KEPT / f"{name}-running-{os.getpid()}")
        each = (time.process_time() - began) / max(1, asked.cases)
        number = sum(count for _, count in outcome.faults.values())
        print(
            f"{name}: {asked.cases} cases, {outcome.read} read, {outcome.refused} refused, {number} faults; "
            f"{each * 1e3:.1f} ms a case, slowest {outcome.slowest:.2f} s, "
            f"grown by {outcome.grown / 1e6:.0f} MB",
            flush=True,
        )
        kinds = collections.Counter({fault: count for fault, (_, count) in outcome.faults.items()})
        for fault, count in kinds.most_common():
            data = outcome.faults[fault][0]
            file = KEPT / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            print(f"  {count} x {fault}: {file}", flush=True)
        failed |= bool(outcome.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
