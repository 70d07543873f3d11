"""What a call decided, one by one."""

from __future__ import annotations

from lora_conductor.fusion.records import Decision
from lora_conductor.fusion.records.decisions import KINDS
from lora_conductor.fusion.routing import Call


def decisions_of(call: Call) -> list[Decision]:
    made = call.decided()
    found = [Decision(name, {}, {}) for name in made.layers]
    for row, decision in enumerate(found):
        values = {kind: float(value) for kind, value in enumerate(made.numbers[:, row]) if not value.isnan()}
        for block in made.blocks:
            if row in block.rows:
                own = block.values[:, block.rows.index(row)]
                values |= dict(zip(block.kinds, own, strict=True))
        for kind, value in values.items():
            field, role = KINDS[kind]
            if field == "log_ratio":
                decision.log_ratio = value
            else:
                getattr(decision, field)[role] = value
    return found
