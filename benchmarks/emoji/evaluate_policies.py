"""Which policy fuses best: the small world's judge on subject, style, and both at once.

    python benchmarks/emoji/evaluate_policies.py --world FOLDER                  # the standard table, tuning pairs
    python benchmarks/emoji/evaluate_policies.py --world FOLDER "core:1/1.5" "kl_soft(temperature=1.0,balance=-2)" \
        "1/2:paper" --subjects test --seeds 4

A method on the command line is one of

    core:A/B            both LoRAs merged by core's stacked loaders at strengths A (subject) and B (style)
    POLICY              a routing policy of this pack at strengths 1/1, with settings of its own and of the router:
                        kl_soft(temperature=1,share=both,smoothing=.7), recommended(floor=.3)
    A/B:POLICY          the same at other strengths
    FILE.py:NAME        a policy object, or a function (base model, subject LoRA path, style LoRA path) -> model

From Python: ``evaluate(world, judge, {"label": make_model, ...}, subjects, styles, seeds)``.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import world
from judge import Judge

Maker = Callable[[Any, Path, Path], Any]
"""(base ModelPatcher, subject LoRA file, style LoRA file) -> ModelPatcher to sample with."""

STANDARD = (
    "core:1/0", "core:0/1", "core:1/1", "core:.7/1.3", "core:1/1.5", "core:1/2", "paper", "kl_soft", "recommended",
)  # fmt: skip


# One setting of the router at a time, on the policy that we recommend and on the paper's evened out.
SETTINGS = (
    "recommended", "recommended(smoothing=.7)", "recommended(follow_cond=True)", "recommended(granularity=token)",
    "recommended(granularity=head)", "recommended(cap=1.5)", "recommended(floor=.7)", "recommended(layer_prior=1)",
    "recommended(even_out=.5)", "recommended(start=.1)", "recommended(end=.8)", "recommended(freeze_after=5)",
    "recommended(score=standardised_kl)", "paper", "paper(even_out=1)", "paper(even_out=1,smoothing=.7)",
    "paper(even_out=1,hysteresis=.3)", "paper(even_out=1,time_lead=1)", "paper(even_out=1,floor=.5)",
    "paper(score=standardised_kl)", "kl_soft", "kl_soft(share=both)", "kl_soft(share=both,even_out=1,time_lead=1)",
)  # fmt: skip


def core_stacked(subject_strength: float, style_strength: float) -> Maker:
    """Core's two LoRA loaders in a row."""

    def make(model: Any, subject: Path, style: Path) -> Any:
        import comfy.sd
        import comfy.utils

        for path, strength in ((subject, subject_strength), (style, style_strength)):
            if strength:
                weights = comfy.utils.load_torch_file(str(path), safe_load=True)
                model, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0)
        return model

    return make


def routed(policy: Any, subject_strength: float = 1.0, style_strength: float = 1.0, refinement: Any = None) -> Maker:
    """This pack's loader and router with a policy object of ``lora_conductor.fusion.policies``, and its settings."""

    def make(model: Any, subject: Path, style: Path) -> Any:
        from lora_conductor.host.fusion_patch import add_loras, set_policy
        from lora_conductor.host.lora_patches import model_patches
        from lora_conductor.host.lora_reading import read_lora

        patches = [model_patches(read_lora(path.name, str(path)), model) for path in (subject, style)]
        fused = add_loras(model, [(patches[0], "subject", subject_strength), (patches[1], "style", style_strength)])
        return set_policy(fused, policy, refinement)

    return make


def parse_policy(text: str) -> tuple[Any, Any]:
    """A policy and the router's settings from one text, e.g. ``kl_soft(temperature=0.5, smoothing=.7)``."""
    from lora_conductor.fusion.policies import POLICIES, RECOMMENDED
    from lora_conductor.fusion.refinement import Refinement

    known = {"recommended": lambda: RECOMMENDED, **POLICIES}
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", text.strip())
    if not found or found[1] not in known:
        raise ValueError(f"unknown policy {text!r}; known: {', '.join(known)}")
    settings = {}
    for item in filter(None, (found[2] or "").split(",")):
        key, _, value = item.partition("=")
        try:
            settings[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):  # a bare word
            settings[key.strip()] = value.strip()
    refined = {name: settings.pop(name) for name in list(settings) if name in Refinement.__dataclass_fields__}
    return known[found[1]](**settings), Refinement(**refined)


def parse_method(text: str) -> Maker:
    """A method as written on the command line (see the module's docstring)."""
    if found := re.fullmatch(r"(.+\.py):(\w+)", text):
        spec = importlib.util.spec_from_file_location("plugged_in", found[1])
        module = importlib.util.module_from_spec(spec)
        sys.modules["plugged_in"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        value = getattr(module, found[2])
        return routed(value) if hasattr(value, "weights") else value
    number = r"[\d.]+"
    if found := re.fullmatch(rf"core:({number})/({number})", text):
        return core_stacked(float(found[1]), float(found[2]))
    if found := re.fullmatch(rf"({number})/({number}):(.+)", text):
        policy, refinement = parse_policy(found[3])
        return routed(policy, float(found[1]), float(found[2]), refinement)
    policy, refinement = parse_policy(text)
    return routed(policy, refinement=refinement)


@dataclass(frozen=True)
class Result:
    """A method's pictures [pairs x seeds, 3, 64, 64], pair by pair, and the judge's values for each of them."""

    pictures: Tensor
    values: dict[str, Tensor]
    seconds: float

    def means(self) -> dict[str, float]:
        """Shares of subject_ok, style_ok, both; mean probabilities subject_p, style_p, and of their product both_p."""
        means = {name: float(value.float().mean()) for name, value in self.values.items()}
        return {**means, "both_p": float((self.values["subject_p"] * self.values["style_p"]).mean())}

    def by_style(self, styles: int) -> list[dict[str, float]]:
        """`means` of each style alone; the pairs are ordered style by style."""
        parts = {name: value.chunk(styles) for name, value in self.values.items()}
        return [Result(self.pictures, {n: v[i] for n, v in parts.items()}, 0.0).means() for i in range(styles)]


def evaluate(
    small: world.SmallWorld,
    judge: Judge,
    methods: dict[str, Maker],
    subjects: Sequence[str],
    styles: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[str, Result], None] = lambda label, result: None,
) -> dict[str, Result]:
    """Sample every (style, subject) pair by every method, all seeds in one batch, and judge the pictures."""
    results = {}
    for label, make in methods.items():
        start = time.monotonic()
        pictures, values = [], []
        for style in styles:
            for subject in subjects:
                model = make(small.model, small.lora("subject", subject), small.lora("style", style))
                made = small.decode(small.sample(model, subject, style, seeds))
                pictures.append(made)
                values.append(judge.score(made, subject, style))
        joined = {name: torch.cat([value[name] for value in values]) for name in values[0]}
        results[label] = Result(torch.cat(pictures), joined, time.monotonic() - start)
        progress(label, results[label])
    return results


HEADER = f"{'method':44} subject  style   both | both_p subj_p styl_p | both by style | s/picture"


def table_row(label: str, result: Result, styles: int) -> str:
    m = result.means()
    each = " ".join(f"{part['both']:.2f}" for part in result.by_style(styles))
    return (
        f"{label:44} {m['subject_ok']:7.2f} {m['style_ok']:6.2f} {m['both']:6.2f} | {m['both_p']:6.3f} "
        f"{m['subject_p']:6.3f} {m['style_p']:6.3f} | {each:13} | {result.seconds / len(result.pictures):.2f}"
    )


def markdown(title: str, arguments: argparse.Namespace, results: dict[str, Result]) -> str:
    """The table for the docs, with the command that made it."""
    flags = f"--subjects {arguments.subjects} --seeds {arguments.seeds} --first-seed {arguments.first_seed}"
    count = len(next(iter(results.values())).pictures)
    lines = [
        f"# Small world: {title}",
        "",
        "```",
        f'make bench-quality ARGS="{"--settings " if arguments.settings else ""}{flags} --table {arguments.table}"',
        "```",
        "",
        f"Shares of {count} pictures in which the judge recognises the subject, the style, and both; `p` is the mean "
        "probability that it gives to both. A share of one half has a standard error of "
        f"{0.5 / count**0.5:.2f}: smaller differences are noise.",
        "",
        "| method | subject | style | both | p |",
        "|---|---|---|---|---|",
    ]
    for label, result in results.items():
        m = result.means()
        values = " | ".join(f"{m[name]:.2f}" for name in ("subject_ok", "style_ok", "both"))
        lines.append(f"| `{label}` | {values} | {m['both_p']:.3f} |")
    return "\n".join([*lines, ""])


def truth(
    small: world.SmallWorld, judge: Judge, pictures: Any, subjects: Sequence[str], styles: Sequence[str]
) -> Result:
    """The true pictures through the autoencoder: the ceiling."""
    made, values = [], []
    for style in styles:
        for subject in subjects:
            made.append(small.decode(small.encode(pictures.picture(subject, style)[None])))
            values.append(judge.score(made[-1], subject, style))
    return Result(torch.cat(made), {name: torch.cat([v[name] for v in values]) for name in values[0]}, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(STANDARD))
    parser.add_argument("--settings", action="store_true", help="the router's settings, one at a time")
    parser.add_argument("--table", type=Path, help="write the table there too, as Markdown")
    parser.add_argument("--world", type=Path, help="folder with the small world's files (default: the shipped assets)")
    parser.add_argument("--subjects", default="tune", help="tune, test, or names with commas")
    parser.add_argument("--styles", default=",".join(world.STYLES))
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, help="folder for sheet.png and results.json")
    arguments = parser.parse_args()
    world.enter_host()
    small, judge = world.SmallWorld(arguments.world), Judge.load()
    named = {"tune": world.TUNE, "test": world.TEST}
    subjects = named.get(arguments.subjects) or tuple(arguments.subjects.split(","))
    styles = arguments.styles.split(",")
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    methods = {text: parse_method(text) for text in (SETTINGS if arguments.settings else arguments.methods)}

    print(f"{len(subjects)} subjects x {len(styles)} styles x {len(seeds)} seeds\n{HEADER}", flush=True)
    results = evaluate(
        small,
        judge,
        methods,
        subjects,
        styles,
        seeds,
        lambda label, result: print(table_row(label, result, len(styles)), flush=True),
    )
    columns = {label: result.pictures[:: len(seeds)] for label, result in results.items()}
    if arguments.world is not None and (arguments.world / "emoji64.npz").is_file():
        from data import load_pictures

        ceiling = truth(small, judge, load_pictures(arguments.world), subjects, styles)
        print(table_row("truth through the autoencoder", ceiling, len(styles)))
        columns["truth"] = ceiling.pictures
    if arguments.table is not None:
        title = "one setting at a time" if arguments.settings else "policies"
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(markdown(title, arguments, results), encoding="utf-8")
    if arguments.out is not None:
        world.contact_sheet(columns, arguments.out / "sheet.png")
        figures = {label: result.means() for label, result in results.items()}
        (arguments.out / "results.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
