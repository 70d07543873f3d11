"""Values of the type LORA_STACK, as other packs hand them over; spelled as JSON, with `{"$": kind}` for objects."""

from __future__ import annotations

import json
from typing import Any

import numpy
import torch

from lora_conductor.host.core import ConductorError, printable
from lora_conductor.host.fusing import load_loras
from lora_conductor.host.loras import LoraChoice, choices_of_stack, stack_of

from .. import mutations
from ..cases import Parser
from . import setting


class _Odd:
    """Nothing that can be said of it is harmless."""

    def __repr__(self) -> str:
        return "\ud800\x1b[2J" * 1000

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


OBJECTS = {
    "tensor": lambda: torch.tensor(0.5),
    "tensors": lambda: torch.ones(2),
    "float16": lambda: numpy.float16(0.5),
    "int64": lambda: numpy.int64(1),
    "array": lambda: numpy.ones(3),
    "bytes": lambda: b"fuzz_subject.safetensors",
    "complex": lambda: 1j,
    "set": lambda: {1.0},
    "odd": _Odd,
    "large": lambda: 10**5000,
    "small": lambda: -(10**400),
    "str": lambda: numpy.str_("fuzz_subject.safetensors"),
    "generator": lambda: (value for value in (1, 2, 3)),
}


def made_of(value: Any) -> Any:
    """JSON as the objects that it stands for."""
    if isinstance(value, dict) and isinstance(kind := value.get("$"), str):
        if kind == "tuple" and isinstance(value.get("of"), list):
            return tuple(made_of(part) for part in value["of"])
        if kind in OBJECTS:
            return OBJECTS[kind]()
    if isinstance(value, dict):
        return {key: made_of(part) for key, part in value.items()}
    return [made_of(part) for part in value] if isinstance(value, list) else value


SPELLED = tuple({"$": kind} for kind in OBJECTS)


def _seeds() -> list[bytes]:
    entry: list[Any] = [setting.SUBJECT, 0.5, 1.0]
    stacks = [[entry], [{"$": "tuple", "of": entry}], [[*entry, ""]], [[*entry, None]], [["None", 1.0, 1.0], entry]]
    stacks += [[entry, [setting.STYLE, -1, 0]], {"$": "tuple", "of": [entry]}, [[setting.SUBJECT, 0, 0.0]], None, []]
    return [json.dumps(stack).encode() for stack in stacks]


def _read(data: bytes) -> None:
    base = setting.styled()
    stack = made_of(json.loads(data))
    choices = [LoraChoice(setting.SUBJECT, "subject", 1.0, 1.0), *choices_of_stack(stack, "style", "style_stack")]
    with setting.known_keys():
        _, _, report = load_loras(base, setting.clip(), choices)
    setting.printed(printable(report), json.dumps(stack_of(choices)))


NAMES = (
    setting.SUBJECT,
    setting.STYLE,
    "None",
    "nowhere.safetensors",
    "../loras/x",
    "/etc/passwd",
    f"x/../{setting.STYLE}",
)
STACKS = Parser(_seeds, _read, (ConductorError,), (mutations.json_with((*SPELLED, *NAMES)),))
