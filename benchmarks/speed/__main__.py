"""``make bench-speed``: counts first, which are exact on any machine, then times."""

from __future__ import annotations

import argparse

from ..host import enter_host
from . import report, timing
from .models import SHAPES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts-only", action="store_true", help="do not time")
    parser.add_argument(
        "--model", action="append", choices=SHAPES, help="count on this one; may be given several times"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--gpu", action="store_true", help="time on the GPU, in float16")
    options = parser.parse_args()
    enter_host(cpu=not options.gpu)
    report.write(options.model or tuple(SHAPES))
    if not options.counts_only:
        timing.time_all(options)


if __name__ == "__main__":
    main()
