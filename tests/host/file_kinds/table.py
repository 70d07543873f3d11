"""The grid of file kinds as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from .dialects import GENERIC
from .grid import EXACT, KINDS, Cell
from .oddities import ODDITIES


def page(cells: list[Cell], version: str, command: str) -> str:
    """The page: what was measured, tables by model, and what is refused in which words.

    Args:
        cells: all.
        version: of the host.
        command: that makes the page.
    """
    used = [cell.error for cell in cells if not cell.useless]
    parts = [
        "# Kinds of LoRA files",
        "",
        f"Made by `{command}` with ComfyUI {version}. Do not edit.",
        "",
        "Small random models, one step of sampling a cell. A LoRA file of the kind stands with plain ones on our",
        "loader and on ComfyUI's, one after the other, and every picture is compared with that of ComfyUI's own",
        "loaders in the same order: LoRAs added while sampling (the plain sum, live), one role alone, and, where the",
        "order matters, `sum` before sampling. Shown is the largest difference over the output's range;",
        f"{EXACT:.0e} is allowed. *refused*: ComfyUI's loaders end in an error, in numbers that are none, or leave the",
        "layer or the file without any effect, and ours say so, naming the layer or the file; the rest of the file is",
        "applied, and gives ComfyUI's picture of the rest. A dash: there are no such files.",
        "",
        f"{len(cells)} cells, {sum(not cell.passed for cell in cells)} failed, {len(cells) - len(used)} refused. "
        f"Largest difference: {max(used, default=0.0):.1e}.",
        "",
    ]
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model]
        generic = [cell for cell in own if cell.dialect == GENERIC]
        plain = [cell for cell in own if cell.kind == "lora"]
        parts += [f"## {model}", "", f"Adapters, in ComfyUI's own names (`{GENERIC}...`):", ""]
        parts += _table(generic, "Adapter", KINDS, lambda cell: cell.kind, ODDITIES, lambda cell: cell.oddity)
        parts += ["", "Plain LoRAs, by the names that the files have for layers and tensors:", ""]
        dialects = list(dict.fromkeys(cell.dialect for cell in plain))
        parts += _table(plain, "Names", dialects, lambda cell: cell.dialect, ODDITIES, lambda cell: cell.oddity)
        parts += ["", "Other adapters by those names, also with ComfyUI's loader behind:", ""]
        dialects = list(dict.fromkeys(cell.dialect for cell in own))
        parts += _table(own, "Adapter", KINDS, lambda cell: cell.kind, dialects, lambda cell: cell.dialect)
        parts.append("")
    return "\n".join([*parts, "## What is refused", "", *_refusals(cells), ""])


def _table(
    cells: list[Cell],
    title: str,
    rows: Iterable[str],
    row_of: Callable[[Cell], str],
    columns: Iterable[str],
    column_of: Callable[[Cell], str],
) -> list[str]:
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((row_of(cell), column_of(cell)), []).append(cell)
    shown = [column for column in columns if any(column == key[1] for key in found)]
    lines = [_line([title, *shown]), _line(["---"] * (len(shown) + 1))]
    for row in rows:
        if any(row == key[0] for key in found):
            lines.append(_line([f"`{row}`", *(_shown(found.get((row, column), [])) for column in shown)]))
    return lines


def _shown(cells: list[Cell]) -> str:
    if not cells:
        return "-"
    failed = [cell for cell in cells if not cell.passed]
    if failed:
        return f"**FAILED {max(cell.error for cell in failed):.0e}**"
    errors = [cell.error for cell in cells if not cell.useless]
    return f"{max(errors):.0e}" if errors else "refused"


def _refusals(cells: list[Cell]) -> list[str]:
    """By oddity, what ComfyUI's loaders make of it, and our words for the first of them."""
    found: dict[tuple[str, str], str] = {}
    for cell in cells:
        if cell.useless:
            found.setdefault((cell.oddity, cell.useless), re.sub(r"'[^']*\.safetensors'", "'...'", cell.said))
    return [f"- *{oddity}* (ComfyUI: {core}): {said}" for (oddity, core), said in found.items()]


def _line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"
