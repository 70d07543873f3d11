"""The page of the router: what deciding finer, and from more, adds to the best fixed schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..judging.verdicts import Array, Verdicts, between
from ..methods.runs import Entry, Pair

SCHEDULE, ONCE, FILES = "schedule alone", "once, files", "by layer, files"
ONCE_MEASURED, LEVELLED, MEASURED = "once, measured", "by layer, files, level measured", "by layer, measured"
FINER = {
    "by layer, first step": "recommended(freeze_after=1)",
    "by head": "recommended(granularity=head)",
    "by token": "recommended(granularity=token)",
    "by layer, turned over": "evened_once(layers=-1,measured=True)",
}
"""Ways that are tried beside those of :func:`ladder`, by their names."""
PROMPTS = {
    "emphasis 1, each prompt for itself": "recommended(emphasis=1)",
    "emphasis 1, both prompts alike": "recommended(emphasis=1,follow_cond=True)",
}
"""Whom a decision is made for. At the default emphasis the negative prompt gets nothing that could be decided."""
FILES_OF = {
    "as shipped": "",
    "loud 2/1": "loud 2/1:",
    "loud 1/2": "loud 1/2:",
    "attention/all": "layers attention/all:",
    "all/attention": "layers all/attention:",
    "uneven alphas": "alpha 4/4:",
    "overlapping": "shared .5/.5:",
    "third in the stack": "shared 1/0:",
    "rank 8/2": "rank 8/2:",
}
"""Arrangements of files by their names, as methods begin."""
OVER = (
    *((SCHEDULE, ONCE), (FILES, ONCE), (ONCE_MEASURED, ONCE), (MEASURED, ONCE)),
    *((LEVELLED, FILES), (LEVELLED, MEASURED), (MEASURED, ONCE_MEASURED)),
)
"""What is compared with what."""
TRIED = tuple((way, MEASURED) for way in FINER)
TRIED_ON = ("as shipped", "loud 1/2", "attention/all", "uneven alphas")
"""Where the finer ones are tried."""
ABOUT = """\
# What the router adds

```
{command}
```

In the small world ([benchmarks/emoji](../../benchmarks/emoji/README.md)): one tiny FLUX and its files, no more. 16
Euler steps, CFG 2.5, strengths 1/1. All ways of deciding have the schedule in time, the emphasis and the bounds of
`recommended`. They differ in what is known of how loud both LoRAs are, and in what is evened out at once:

- *schedule alone*: nothing is known; every pair and layer gets the schedule's weights.
- *once, files*: one number a pair, the middle of the layers' ratios of `||dW||_F^2`: what two strengths can do.
- *by layer, files*: that ratio of every layer, and of the queries, keys, values and MLP in it. Nothing is measured.
- *once, measured*: one number a pair and step, the mean of what all layers measured in the step before.
- *by layer, files, level measured*: the files' ratio of every layer less its mean, plus that measured number.
- *by layer, measured*: what both LoRAs do to the features, layer by layer and step by step: `recommended`.
- *by layer, first step*: the same, settled for the rest of the run (`freeze_after=1`): by prompt, not by step.
- *by head*, *by token*: the router's `granularity`.
- *by layer, turned over*: evened out once, measured, and what a layer's ratio is beside that the other way round: who
  moves a layer more than others gets more of it.

Norms and features do not agree on who is louder: over the test pairs as shipped, features say a log ratio of energies
(subject over style) of {test[0]:+.2f}, {test[1]:+.2f} more than the files. So that no way is worse off by its level,
both are constants of the ways that do not measure: the first is added to the schedule alone, the second to what files
say. Of the fresh pairs, where nothing was set by them, they would be {fresh[0]:+.2f} and {fresh[1]:+.2f}.

Files, subject/style: *loud*, all deltas times 2; *rank*, cut by singular values (as shipped: 8, of the fresh subjects
and of rendered styles 4); *attention*, queries, keys, values and outputs of attention alone; *uneven alphas*, the
layers of both files times 1/4 to 4 by chance; *overlapping*, half of a third file, another subject's, in both; *third
in the stack*, that file whole beside the subject's. What would have to be trained is not here: files with too many
steps, styles of a few pictures, ranks of 32 and more, accelerating LoRAs."""
BY_PROMPT = """\
Whether each prompt decides for itself: nothing is to be seen of it at the default emphasis, where the negative prompt's
pass gets nothing of the LoRAs at this CFG. At emphasis 1:"""
HMEANS = "Harmonic mean of the subject rate and the style rate, with its 95 % interval over pairs."
LEADS = """\
Leads in the harmonic mean, on the same pictures, with their 95 % intervals over pairs. {count} comparisons: **bold** is
clear of zero at 0.05 / {count}; at 95 % alone, one in twenty is so by chance. *mean*: of all files, drawn together;
{ways} comparisons more, **bold** at 0.05 / {ways}."""
PS = "The judge's mean probability of both."
GAINS = "Leads in that, with their standard errors over pairs."


def ladder(level: float, beyond: float) -> dict[str, str]:
    """Ways of deciding by their names: nothing known, the files' norms or what is measured, once or by layer.

    Args:
        level: log ratio of energies, subject over style, that features have as a rule.
        beyond: how far that is above what the files say.
    """
    return {
        SCHEDULE: f"balanced(evenness=0,lean={-level:.2f})",
        ONCE: f"evened_once(lean={-beyond:.2f})",
        FILES: f"by_files(lean={-beyond:.2f})",
        ONCE_MEASURED: "evened_once(measured=True)",
        LEVELLED: "levelled",
        MEASURED: "recommended",
    }


def entries(ways: Mapping[str, str], arrangements: Sequence[str]) -> list[Entry]:
    """Every way on every arrangement."""
    return [
        Entry(label(way, files), FILES_OF[files] + method, kind="ours" if way == MEASURED else "ablation")
        for files in arrangements
        for way, method in ways.items()
    ]


def label(way: str, files: str) -> str:
    return f"{way} | {files}"


def lead(verdicts: Mapping[str, Verdicts], way: str, over: str, arrangements: Sequence[str]) -> tuple[float, Array]:
    """How far a way's harmonic mean is above another's, the mean of some arrangements; and bootstrapped over pairs, the
    same for all of them."""
    both = [[verdicts[label(each, files)] for each in (way, over)] for files in arrangements]
    drawn = [one.replicates() - other.replicates() for one, other in both]
    return float(np.mean([one.hmean - other.hmean for one, other in both])), np.mean(drawn, axis=0)


def gain(verdicts: Mapping[str, Verdicts], way: str, over: str, arrangements: Sequence[str]) -> tuple[float, float]:
    """The same of the judge's mean probability of both, with its standard error over pairs."""
    both = [[verdicts[label(each, files)] for each in (way, over)] for files in arrangements]
    gains = np.mean([(one.p - other.p).mean(axis=1) for one, other in both], axis=0)
    return float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5)


def tables(
    verdicts: Mapping[str, Verdicts],
    ways: Sequence[str],
    compared: Sequence[tuple[str, str]],
    arrangements: Sequence[str],
) -> list[str]:
    """Markdown: harmonic means and leads in them, the judge's probabilities and leads in those.

    compared: (way, over which).
    """
    groups = {**{files: (files,) for files in arrangements}, "mean": tuple(arrangements)}
    pairs = {f"{way}, over {over}": (way, over) for way, over in compared}
    count = len(pairs) * len(arrangements)

    def mean(way: str, files: Sequence[str]) -> str:
        its = [verdicts[label(way, each)] for each in files]
        middle = f"{np.mean([v.hmean for v in its]):.2f}"
        return "{} ({:.2f}-{:.2f})".format(middle, *its[0].interval()) if len(its) == 1 else middle

    def its_lead(pair: str, files: Sequence[str]) -> str:
        value, drawn = lead(verdicts, *pairs[pair], files)
        low, high = between(drawn)
        least, most = between(drawn, 1 - 0.05 / (count if len(files) == 1 else len(pairs)))
        text = f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
        return f"**{text}**" if least > 0 or most < 0 else text

    def p(way: str, files: Sequence[str]) -> str:
        return f"{np.mean([verdicts[label(way, each)].rate('p') for each in files]):.3f}"

    def its_gain(pair: str, files: Sequence[str]) -> str:
        return "{:+.3f} +- {:.3f}".format(*gain(verdicts, *pairs[pair], files))

    return [
        *(HMEANS, "", *_table(ways, groups, mean), ""),
        *(*LEADS.format(count=count, ways=len(pairs)).splitlines(), "", *_table(list(pairs), groups, its_lead), ""),
        *(PS, "", *_table(ways, groups, p), ""),
        *(GAINS, "", *_table(list(pairs), groups, its_gain)),
    ]


def _table(
    columns: Sequence[str], groups: Mapping[str, Sequence[str]], cell: Callable[[str, Sequence[str]], str]
) -> list[str]:
    lines = [f"| files | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    return lines + [
        f"| {name} | {' | '.join(cell(column, arrangements) for column in columns)} |"
        for name, arrangements in groups.items()
    ]


def of_test(verdicts: Mapping[str, Verdicts], ways: Sequence[str]) -> list[str]:
    """What is told of the test pairs, ways being those of :func:`ladder`."""
    each = tables(verdicts, [*ways, *FINER], [*OVER, *TRIED], TRIED_ON)
    return [*each, "", *BY_PROMPT.splitlines(), "", *prompts(verdicts)]


def of_fresh(verdicts: Mapping[str, Verdicts], ways: Sequence[str]) -> list[str]:
    """What is told of the fresh pairs."""
    return tables(verdicts, ways, OVER, list(FILES_OF))


def prompts(verdicts: Mapping[str, Verdicts]) -> list[str]:
    """Markdown: whether both prompts decide apart or alike."""
    lines = ["| | subject | style | both | harmonic mean | p |", "|---|---|---|---|---|---|"]
    for way in PROMPTS:
        v = verdicts[label(way, "as shipped")]
        rates = " | ".join(f"{v.rate(name):.2f}" for name in ("subject", "style", "both"))
        lines.append(f"| {way} | {rates} | {v.hmean:.2f} | {v.rate('p'):.3f} |")
    return lines


def page(
    told: Mapping[str, Sequence[str]],
    levels: Mapping[str, tuple[float, float]],
    command: str,
    pairs: Mapping[str, Sequence[Pair]],
    seeds: Mapping[str, Sequence[int]],
) -> str:
    """The page without what is written by hand.

    Args:
        told: by split, as of :func:`of_test` and :func:`of_fresh`.
        levels: by split, as of :func:`ladder`.
        pairs, seeds: by split.
    """
    parts = ABOUT.format(command=command, **levels).splitlines()
    for split, title in (("test", "Choosing, on test pairs"), ("fresh", "Measured, on fresh pairs")):
        its, where = seeds[split], f"{len(pairs[split])} pairs ({_names(pairs[split])})"
        parts += ["", f"## {title}", "", f"{where}, seeds {its[0]} to {its[-1]}.", "", *told[split]]
    return "\n".join([*parts, ""])


def _names(pairs: Sequence[Pair]) -> str:
    subjects, styles = (", ".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return f"{subjects}; each in {styles}"
