"""The page of a guidance-distilled model at CFG 1: its rows, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..judging.verdicts import Verdicts, difference
from ..methods.runs import Entry, Pair
from ..world.kinds import Kind

RECOMMENDED = "recommended"
DRIVES = (0.7, 1.25, 1.5)
"""Strengths of both LoRAs under the default."""
CURES = {
    "leads turned around": "balanced(subject_lead=-1,style_lead=-3)",
    "no leads": "balanced(subject_lead=0,style_lead=0)",
    "guided by the base, 1.5": f"base 1.5/1:{RECOMMENDED}",
    "guided by the base, 2.5": f"base 2.5/1:{RECOMMENDED}",
    "guided by the base, 2.5, first half": f"base 2.5/.5:{RECOMMENDED}",
}
"""Of the default, what might make up for the missing negative pass or for few steps."""
STACKS = ("0.5/0.5", "0.7/0.7", "0.7/1", "1/1", "1/1.5", "1/2", "1.3/2")
SHOWN = (RECOMMENDED, "stacked 0.7/0.7", "stacked 1/1")
"""On the contact sheet."""
ABOUT = """\
A tiny FLUX whose guidance is distilled into it, as FLUX-dev's is: the base world's model taught to predict in one
pass what that one predicts under classifier-free guidance (`benchmarks/emoji/world/distilled.py`). It is sampled at
CFG 1, so there is no negative pass: the push that `recommended` gets from leaving LoRAs out of it is not to be had,
and methods on the positive prompt alone are plain stacking. No LoRA adds more to a layer than it does alone, unless
the user asks for that: *emphasis* 1.5 of the router is the row *at 1.5/1.5*. *Guided by the base* is autoguidance
(arXiv 2406.02507): in a second pass a step, the model says what it would draw without LoRAs, and the picture goes on
from there at that scale. *Leads turned around*: the style leads early and the subject late. Subjects, styles, tokens,
judge and what the columns mean are those of [quality.md](quality.md). This is one small model; it shows what happens
there."""
LORAS = {
    "": "LoRAs are the shipped ones, trained on the base model, as users of distilled models have them.",
    "distilled": "LoRAs were trained on the distilled model itself, rank 4, told guidance 1.",
}


def rows() -> list[Entry]:
    """The default, the default driven less and more, and core's loaders at several strengths."""
    driven = [Entry(f"{RECOMMENDED} at {s:g}/{s:g}", f"{s:g}/{s:g}:{RECOMMENDED}", kind="ablation") for s in DRIVES]
    driven += [Entry(f"{RECOMMENDED}, {name}", method, kind="ablation") for name, method in CURES.items()]
    stacked = [Entry(f"stacked {strengths}", f"core:{strengths}") for strengths in STACKS]
    return [Entry(RECOMMENDED, RECOMMENDED, kind="ours"), *driven, *stacked]


def table(verdicts: Mapping[str, Verdicts]) -> list[str]:
    """Rows by falling harmonic mean, and how far the default is above each."""
    lines = [
        "| method | subject | style | both | **hmean** | 95 % | p(both) | `recommended` is above by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, v in sorted(verdicts.items(), key=lambda item: -item[1].hmean):
        rates = " | ".join(f"{v.rate(name):.2f}" for name in ("subject", "style", "both"))
        low, high = v.interval()
        lead = ""
        if label != RECOMMENDED:
            gain, (least, most) = difference(verdicts[RECOMMENDED], v)
            lead = f"{gain:+.2f} ({least:+.2f} to {most:+.2f})"
        lines.append(f"| `{label}` | {rates} | **{v.hmean:.2f}** | {low:.2f}-{high:.2f} | {v.rate('p'):.3f} | {lead} |")
    return lines


def document(
    tables: Mapping[str, Mapping[str, Verdicts]],
    command: str,
    kind: Kind,
    split: str,
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    sheet: str,
) -> str:
    """The Markdown. tables: verdicts by label, by how the pictures were sampled; sheet: path of the pictures."""
    subjects, styles = (", ".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    parts = [
        "# The default at CFG 1",
        f"```\n{command}\n```",
        ABOUT,
        f"{LORAS[kind.loras]} Split *{split}*: {subjects}, each in {styles}: {len(pairs)} pairs, "
        f"{len(pairs) * len(seeds)} pictures a row; intervals are over pairs. Strengths are 1/1 unless the row says "
        "otherwise.",
    ]
    for sampling, verdicts in tables.items():
        parts += [f"## {sampling}", "\n".join(table(verdicts))]
    parts += [
        "## Pictures",
        f"![A pair a row, the methods at each number of steps]({sheet})",
        "A pair a row, in the order above; *ours* is `recommended`, the number is that of the steps.",
    ]
    return "\n\n".join(parts) + "\n"
