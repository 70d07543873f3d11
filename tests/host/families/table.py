"""The grid as Markdown."""

from __future__ import annotations

import torch

from .bench import ADAPTERS
from .catalogue import ELSEWHERE
from .grid import EXACT, LOW_PRECISION, OTHER_ADAPTERS, Cell

NAMES = {"lora": "LoRA", "tucker": "LoCon, Tucker", "loha": "LoHa", "lokr": "LoKr", "glora": "GLoRA", "oft": "OFT"}
NAMES |= {"boft": "BOFT", "dora_out_lora": "DoRA", "diff": "full difference"}


def table(rows: list[list[Cell]], version: str, command: str) -> str:
    """The page: what was measured, a table of all families, one of further adapters, and what is not measured.

    Args:
        rows: cells by family.
        version: of the host.
        command: that makes the page.
    """
    cells = [cell for row in rows for cell in row]
    exact = [cell.error for cell in cells if cell.dtype == torch.float32]
    low = [cell.error for cell in cells if cell.dtype != torch.float32]
    return "\n".join(
        [
            "# Families and adapters",
            "",
            f"Made by `{command}` with ComfyUI {version}. Do not edit.",
            "",
            "Each family of models is built small, with random weights, from ComfyUI's own classes, and sampled for",
            "one step. A cell puts two LoRA files on every linear and convolution layer: one of the kind above, one",
            "plain LoRA in another dialect of key names, on slices of fused weights where ComfyUI maps any. It shows",
            "the larger of two errors: both files summed at run time against ComfyUI's two stacked loaders, and the",
            "first alone against one loader. Errors are the largest difference over the output's range;",
            f"{EXACT:.0e} is allowed.",
            f"The last column is our RMS error in bfloat16 over that of ComfyUI's merge; {LOW_PRECISION} is allowed.",
            "*Layers*: entries of both files that are fused at run time + those left to ComfyUI's merge (plain LoRA).",
            "*Moved*: how far the LoRAs move the output, the least of the row's cells. A dash: no layer that such an",
            "adapter could be for.",
            "",
            f"{len(cells)} cells, {sum(not cell.passed for cell in cells)} failed. Largest error in float32: "
            f"{max(exact):.1e}. Largest ratio in bfloat16: {max(low):.2f}.",
            "",
            *_table(rows, ADAPTERS, [*(NAMES[kind] for kind in ADAPTERS), "bfloat16"]),
            "",
            "## Further adapters",
            "",
            "`dora_out` and `dora_in`: DoRA magnitudes over outputs and inputs.",
            "",
            *_further(rows),
            "",
            "## Not measured",
            "",
            *(f"- `{name}`: {why}" for name, why in ELSEWHERE.items()),
            "- LoKr with a Tucker core: ComfyUI's merge leaves it out on some versions of torch; ours is tested alone.",
            "",
        ]
    )


def _table(rows: list[list[Cell]], kinds: list[str], titles: list[str]) -> list[str]:
    head = ["Family", "Layers", "Moved", *titles]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        by_kind = {cell.kind: cell for cell in row if cell.dtype == torch.float32}
        low = next(cell for cell in row if cell.dtype != torch.float32)
        plain = by_kind["lora"]
        layers = f"{plain.routed} + {plain.merged}" if plain.merged else str(plain.routed)
        moved = min(cell.moved for cell in row)
        errors = [_shown(by_kind.get(kind)) for kind in kinds]
        lines.append(_line([plain.family, layers, f"{moved:.2f}", *errors, _shown(low)]))
    return lines


def _further(rows: list[list[Cell]]) -> list[str]:
    found = {cell.family: {c.kind: c for c in row} for row in rows for cell in row if cell.kind in OTHER_ADAPTERS}
    head = ["Adapter", *found]
    lines = [_line([f"`{kind}`", *(_shown(found[f].get(kind)) for f in found)]) for kind in OTHER_ADAPTERS]
    return [_line(head), _line(["---"] * len(head)), *lines]


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    value = f"{cell.error:.0e}" if cell.dtype == torch.float32 else f"{cell.error:.2f}"
    return value if cell.passed else f"**FAILED {value}**"


def _line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"
