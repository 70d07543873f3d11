"""Every policy of KLLayerRouter on the small world: what it draws, and who owned which layer when.

    python -m benchmarks.emoji.policy_sheet            # writes output/policies.png

A policy's picture of each pair, and beside each picture the routing map: layers down, steps across; brown is the
subject's, violet the style's, white is shared. Policies that merge before sampling have nothing to decide, and no map.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from repo_paths import OUTPUT

from ..host import enter_host
from .methods.policies import core_stacked, parse_policy, routed, ssr_merged
from .world.small_world import SmallWorld

PAIRS = (("fox", "openmoji"), ("sunflower", "fluent-emoji-high-contrast"))
SEED = 3


def made_by(small: SmallWorld, policy: str, subject: str, style: str) -> tuple[Any, Any]:
    """Picture ``[3, 64, 64]`` of a policy, and its routing record."""
    from lora_conductor.fusion.policies import SSRMerge
    from lora_conductor.host.fusing import record_of_latent

    if policy == SSRMerge.name:
        model = ssr_merged(small, subject, style)
    else:
        chosen, refinement = parse_policy(policy)
        paths = small.lora("subject", subject), small.lora("style", style)
        model = routed(chosen, refinement=refinement)(small.model, *paths)
    latent = small.sample(model, subject, style, [SEED])
    return small.decode(latent)[0], record_of_latent(model, latent)


def alone(small: SmallWorld, subject: str, style: str) -> dict[str, Any]:
    """Pictures with one LoRA, by core's loader."""
    found = {}
    for label, strengths in (("subject LoRA alone", (1.0, 0.0)), ("style LoRA alone", (0.0, 1.0))):
        model = core_stacked(*strengths)(small.model, small.lora("subject", subject), small.lora("style", style))
        found[label] = small.decode(small.sample(model, subject, style, [SEED]))[0]
    return found


def sheet(rows: dict[str, list[tuple[Any, Any]]], path: Path, columns: int = 2) -> None:
    """Draw the rows, wrapped into a few columns."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = -(-len(rows) // columns)
    across = columns * 2 * len(PAIRS)
    figure, axes = pyplot.subplots(height, across, figsize=(1.55 * across, 1.6 * height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (label, cells) in enumerate(rows.items()):
        row, first = i % height, (i // height) * 2 * len(PAIRS)
        for n, (picture, record) in enumerate(cells):
            left, right = axes[row, first + 2 * n], axes[row, first + 2 * n + 1]
            left.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            if n == 0:
                left.set_title(label, fontsize=9, loc="left", fontweight="bold")
            if record is not None and not record.layers:
                right.text(0.5, 0.5, "merged before\nsampling", fontsize=7, ha="center", va="center")
            elif record is not None:
                share = record.weights[0] / record.weights.sum(0).clamp_min(1e-9)
                # PuOr: told apart without red and green.
                right.imshow(share.numpy(), cmap="PuOr_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
                right.set_title(f"subject {record.subject_share():.0%}", fontsize=7)
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUTPUT / "policies.png")
    options = parser.parse_args()
    enter_host()
    from lora_conductor.fusion.policies import POLICIES, SSRMerge

    small = SmallWorld()
    rows: dict[str, list[tuple[Any, Any]]] = {}
    for subject, style in PAIRS:
        for label, picture in alone(small, subject, style).items():
            rows.setdefault(label, []).append((picture, None))
    for policy in ("recommended", *POLICIES, SSRMerge.name):
        rows[policy] = [made_by(small, policy, *pair) for pair in PAIRS]
        shares = ", ".join(
            "merged" if record.subject_share() is None else f"{record.subject_share():.0%} subject"
            for _, record in rows[policy]
        )
        print(f"{policy:18} {shares}", flush=True)
    sheet(rows, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
