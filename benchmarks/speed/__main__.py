"""``make bench-speed``: what is counted, exact on any machine, and what is timed, into docs/benchmarks/speed.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..host import enter_host
from . import report, timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", action="append", help="make only this one; may be given several times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round")
    parser.add_argument("--gpu", action="store_true", help="time on the GPU, in float16, and print the table")
    parser.add_argument("--trace", type=Path, help="write a step's traces by PyTorch's profiler to this folder")
    options = parser.parse_args()
    enter_host(cpu=not options.gpu)
    settings = timing.GPU_SETTINGS if options.gpu else timing.SETTINGS
    if options.trace:
        print(*timing.write_traces(options.trace, settings[0], gpu=options.gpu), sep="\n")
    if options.gpu:
        for line in timing.table(settings, options.rounds, options.steps, gpu=True):
            print(line, flush=True)
    if options.trace or options.gpu:
        return
    makers = report.sections(options.rounds, options.steps)
    chosen = options.section or list(makers)
    if unknown := set(chosen) - makers.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(makers)}")
    report.write(makers, chosen)


if __name__ == "__main__":
    main()
