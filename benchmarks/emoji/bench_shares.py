"""Which share the subject has under each policy, in the small world: docs/benchmarks/shares.md.

    make bench-shares                         # shipped files only, ten minutes of a core
    make bench-shares ARGS="--subjects fox"

What a report calls usual for a policy (`host/fusing/normal.py`) is the middle nine tenths of these.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from repo_paths import REPO

from ..host import enter_host
from .methods.policies import routed
from .world.small_world import SmallWorld
from .world.splits import FRESH, STYLES

ABOUT = """\
# Shares

Made by `make bench-shares`. Do not edit.

Of every policy that decides while sampling, over {pairs} pairs of the small world at strengths 1 (fresh subjects x
{styles}, one seed): the subject's share of what both LoRAs add (weights squared times what each LoRA does in a layer,
the mean over layers and steps), and its share of the weights; the mean, and the middle nine tenths of the pairs. These
are figures of one small model and of files trained alike: elsewhere a share outside of them is a hint, not a fault.

| policy | of what is added | nine tenths of the pairs | of the weights | nine tenths of the pairs |
| --- | --- | --- | --- | --- |"""


def between(values: Sequence[float]) -> tuple[float, float]:
    """The 5th and the 95th percentile."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return cuts[0], cuts[-1]


def row(policy: str, added: Sequence[float], weights: Sequence[float]) -> str:
    """Of a policy's pairs."""
    parts = [f"`{policy}`"]
    for values in (added, weights):
        low, high = between(values)
        parts += [f"{statistics.mean(values):.2f}", f"{low:.2f} to {high:.2f}"]
    return f"| {' | '.join(parts)} |"


def shares(small: SmallWorld, subjects: Sequence[str]) -> Iterator[tuple[str, list[float], list[float]]]:
    """By policy: the subject's shares of what is added and of the weights, a pair each."""
    from lora_conductor.fusion.policies import PassPolicy, ScheduledPolicy, ScoredPolicy
    from lora_conductor.fusion.routing import NAMED
    from lora_conductor.host.fusing import record_of_latent

    for name, policy in NAMED.items():
        if isinstance(policy, PassPolicy) or not isinstance(policy, ScoredPolicy | ScheduledPolicy):
            continue
        added, weights = [], []
        for style in STYLES:
            for subject in subjects:
                model = routed(policy)(small.model, small.lora("subject", subject), small.lora("style", style))
                record = record_of_latent(model, small.sample(model, subject, style, [0]))
                added.append(record.subject_share())
                weights.append(record.subject_weight())
        if None not in added:
            yield name, added, weights


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    parser.add_argument("--subjects", default=",".join(FRESH[::2]), help="with commas")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks" / "shares.md")
    asked = parser.parse_args(given)
    enter_host()
    subjects = asked.subjects.split(",")
    lines = ABOUT.format(pairs=len(subjects) * len(STYLES), styles=", ".join(STYLES)).splitlines()
    for policy, added, weights in shares(SmallWorld(asked.world), subjects):
        lines.append(row(policy, added, weights))
        print(lines[-1], flush=True)
        asked.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
