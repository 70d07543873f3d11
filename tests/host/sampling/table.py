"""The cells as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .patches import ELSEWHERE
from .ways import Cell


def table(cells: Sequence[Cell], flags: Sequence[str]) -> str:
    """One table a section, the differences by name, what has no row; flags: rows of the table of start options."""
    sections = list(dict.fromkeys(cell.way.section for cell in cells))
    measured = [cell for cell in cells if not cell.core_refuses]
    same = [cell.error for cell in measured if not cell.way.differs and not cell.failure]
    lines = [
        f"{len(cells)} cells: {sum(not cell.passed for cell in cells)} failed, "
        f"{sum(bool(cell.way.differs) for cell in cells)} differ for a named reason, "
        f"{len(cells) - len(measured)} are refused by ComfyUI itself. Largest error of the others: {max(same):.0e}.",
    ]
    for section in sections:
        lines += ["", f"### {section}", "", *_section([cell for cell in cells if cell.way.section == section])]
    if flags:
        lines += ["", "### Options that ComfyUI is started with", "", *flags]
    if "Model patches" in sections:
        lines += ["", "### Nodes without a row", "", *(f"- *{node}*: {why}" for node, why in ELSEWHERE.items())]
    return "\n".join(lines).rstrip()


def _section(cells: Sequence[Cell]) -> Iterator[str]:
    columns = list(dict.fromkeys(cell.way.column for cell in cells))
    by_place = {(cell.way.row, cell.way.column): cell for cell in cells}
    yield f"| | {' | '.join(columns)} |"
    yield "|" + " --- |" * (len(columns) + 1)
    notes: dict[str, list[str]] = {}
    for row in dict.fromkeys(cell.way.row for cell in cells):
        texts = []
        for column in columns:
            cell = by_place.get((row, column))
            texts.append("" if cell is None else _text(cell))
            note = "" if cell is None else cell.failure or cell.core_refuses or cell.way.differs
            if note:
                notes.setdefault(note, []).append(f"{row}, {column}")
        yield f"| {row} | {' | '.join(texts)} |"
    if notes:
        yield ""
    for note, places in notes.items():
        yield f"- {'; '.join(places)}: {note}"


def _text(cell: Cell) -> str:
    if cell.core_refuses:
        return "refused"
    if cell.failure:
        return "**FAILED**"
    shown = f"{cell.error:.0e}"
    if cell.way.differs:
        return f"differs, {shown}"
    return shown if cell.passed else f"**FAILED {shown}**"
