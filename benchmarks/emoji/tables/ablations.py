"""The rows of the ablations: one setting at a time, around the recommended policy and the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from ..judging.verdicts import Verdicts
from ..methods import trial_scores
from ..methods.runs import Entry, Pair

RECOMMENDED, PAPER, STACKED = "recommended", "paper", "core:1/1"


def _around(base: str, *settings: str) -> list[Entry]:
    return [Entry(f"{base}({setting})", f"{base}({setting})", kind="ablation") for setting in settings]


def _at(cfg: float, method: str) -> Entry:
    return Entry(f"{method}, CFG {cfg:g}", method, cfg, kind="ablation")


# title -> (what the rows are compared with, rows, what is asked)
QUESTIONS: dict[str, tuple[str, str, list[Entry]]] = {
    "Emphasis": (
        RECOMMENDED,
        "How often should the LoRAs' effect count under CFG? At 2.5, the default, it counts as often as CFG 2.5 can "
        "make it. At emphasis 1 no weight goes beyond 1, see `Balanced`.",
        [
            *_around(RECOMMENDED, "emphasis=1", "emphasis=1.5", "emphasis=2"),
            *(Entry(f"{s} sum(emphasis=2.5)", f"{s}:sum(emphasis=2.5)", kind="ablation") for s in ("1/1", "1/1.5")),
        ],
    ),
    "Leads": (
        RECOMMENDED,
        "Who leads when? `balanced` with the defaults is `recommended`.",
        _around(
            "balanced",
            "subject_lead=0,style_lead=0",
            "subject_lead=2,style_lead=4",
        ),
    ),
    "Evening out": (
        RECOMMENDED,
        "Balance on or off: how much of the difference in loudness is taken out, layer by layer? With files "
        "of unequal loudness: see *One file twice as loud*.",
        _around("balanced", "evenness=0", "evenness=0.5"),
    ),
    "Measuring": (
        RECOMMENDED,
        "Which score, decided for what, by whom, how steadily?",
        _around(
            RECOMMENDED,
            "score=standardised_kl",
            "granularity=token",
            "group_attention=True",
            "follow_cond=True",
            "smoothing=.7",
        ),
    ),
    "Bounds and priors": (
        RECOMMENDED,
        "Does a floor, or what is known of the blocks, help?",
        _around(RECOMMENDED, "floor=.5", "layer_prior=1"),
    ),
    "The paper's rule": (
        PAPER,
        "Where the paper is silent, and what the hard choice would need: features standardised first, KL the other way "
        "round, softmax over tokens, one decision for a batch (both prompts, both seeds), evening out, a lead, "
        "hysteresis, emphasis.",
        _around(
            PAPER,
            "score=standardised_kl",
            "score=reverse_kl",
            "score=kl_over_tokens",
            "score=kl_of_batch",
            "even_out=1",
            "even_out=1,hysteresis=.3",
            "even_out=1,time_lead=1",
            "even_out=1,group_attention=True",
            "even_out=1,follow_cond=True",
            "even_out=1,emphasis=2.5",
        ),
    ),
    "Hard or soft": (
        PAPER,
        "From the hard choice to equal shares.",
        [
            Entry(f"kl_soft({t})", f"kl_soft({t})", kind="ablation")
            for t in ("temperature=.1", "temperature=2", "temperature=.5,share=both", "share=both,emphasis=2.5")
        ],
    ),
    "One LoRA twice too strong": (
        RECOMMENDED,
        "Who survives when a file is twice too loud?",
        [
            *(
                Entry(f"{s} {p}", f"{s}:{p}", kind="imbalance")
                for p in (RECOMMENDED, "balanced(evenness=0)", PAPER)
                for s in ("2/1", "1/2")
            ),
            *(Entry(f"stacked {s}", f"core:{s}", kind="imbalance") for s in ("1/1", "2/1", "1/2")),
        ],
    ),
    "One LoRA of a smaller rank": (
        RECOMMENDED,
        "Who survives when a file has less room? Files cut to rank 2 by singular values (subject/style); the others "
        "have rank 8, the rendered styles' 4.",
        [
            Entry(f"rank {ranks}: {method}", f"rank {ranks}:{method}", kind="imbalance")
            for method in (RECOMMENDED, "balanced(evenness=0)", PAPER, STACKED)
            for ranks in ("2/8", "8/2")
        ],
    ),
    "CFG": (
        RECOMMENDED,
        "Does it hold at other scales of classifier-free guidance? At CFG 1 there is no negative pass to leave "
        "anything out of. (2.5 is the rows above.)",
        [
            *(_at(cfg, method) for cfg in (1.0, 4.0, 6.0) for method in (RECOMMENDED, STACKED)),
            *(_at(cfg, "recommended(emphasis=1)") for cfg in (4.0, 6.0)),
            _at(4.0, "recommended(emphasis=4)"),
        ],
    ),
}  # fmt: skip


def rows() -> list[Entry]:
    """All rows and what they are compared with, each once."""
    trial_scores.register()
    bases = [Entry(name, name, kind="ours" if name == RECOMMENDED else "rival") for name in (RECOMMENDED, PAPER)]
    entries = bases + [entry for _, _, group in QUESTIONS.values() for entry in group]
    return list({entry.label: entry for entry in entries}.values())


def document(
    verdicts: dict[str, Verdicts], command: str, sampling: str, pairs: Sequence[Pair], seeds: Sequence[int]
) -> str:
    """The Markdown: a table a question, each row against what it varies."""
    count = len(pairs) * len(seeds)
    parts = [
        "# One setting at a time",
        f"```\n{command}\n```",
        f"Tune pairs only ({len(pairs)} pairs, seeds {seeds[0]}-{seeds[-1]}, {count} pictures a row), {sampling} "
        "and strengths 1/1 unless the row says otherwise. *subject*, *style*, *both*: share that the judge "
        "finds right. *hmean*: harmonic mean of the first two. *p*: its mean probability of both. *gain*: in p, over "
        "the first row of the table, same pairs and seeds, with its standard error over pairs; less than two of those "
        f"is no finding. A share of one half has a standard error of {0.5 / count**0.5:.2f}.",
    ]
    for title, (base, question, entries) in QUESTIONS.items():
        labels = dict.fromkeys([base, *(entry.label for entry in entries)])
        lines = ["| method | subject | style | both | hmean | p | gain in p |", "|---|---|---|---|---|---|---|"]
        for label in labels:
            v = verdicts[label]
            gain = "" if label == base else "{:+.3f} +- {:.3f}".format(*v.gain(verdicts[base]))
            rates = " | ".join(f"{v.rate(name):.2f}" for name in ("subject", "style", "both"))
            lines.append(f"| `{label}` | {rates} | {v.hmean:.2f} | {v.rate('p'):.3f} | {gain} |")
        parts += [f"## {title}", question, "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def as_json(verdicts: dict[str, Verdicts]) -> dict[str, dict[str, dict[str, float]]]:
    """``{"ablations": {label: {subject, style, both, hmean, p}}}``."""
    found = {}
    for label, v in verdicts.items():
        found[label] = {name: round(v.rate(name), 4) for name in ("subject", "style", "both", "p")}
        found[label]["hmean"] = round(v.hmean, 4)
    return {"ablations": found}
