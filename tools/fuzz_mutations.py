"""Input made worse: bytes at random, and JSON by its structure."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

HUGE = 10**400
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63) - 1, HUGE, 0.5, -0.0, 1e30, 5e-324, math.nan, math.inf),
    *("", "x", "subject", "positive.0", "\ud800", "\0", "\x1b[2J", "\u202e", "../../x", "a" * 10_000),
    *(
        [],
        [[]],
        [[[]]],
        [[[1.0]]],
        [[[1.0, 0.0]]],
        [[[1.0], [0.5]]],
        [[[math.nan]]],
        [[[1e30]]],
        [[[None]]],
        [1.0, 0.0],
    ),
    *({}, {"": None}, {"step": 0, "condition": "", "evaluation": 0, "weights": []}),
)
TOKENS = (b"[", b"]", b"{", b"}", b",", b":", b'"', b"NaN", b"-Infinity", b"1e999", b"null", b"\\ud800", b"\xff", b"\0")


def bytes_of(data: bytes, random: Random) -> bytes:
    """One to four changes: a bit, a piece left out, doubled, moved or replaced."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(changed) + 1)
        stop = min(len(changed), start + random.choice((1, 2, 8, 64)))
        match random.randrange(5):
            case 0 if start < len(changed):
                changed[start] ^= 1 << random.randrange(8)
            case 1:
                del changed[start:stop]
            case 2:
                changed[start:start] = changed[start:stop] * random.choice((1, 2, 50))
            case 3:
                changed[start:start] = random.choice(TOKENS) * random.choice((1, 1, 3, 2000))
            case _:
                changed[start:stop] = random.randbytes(stop - start)
    return bytes(changed)


def json_of(data: bytes, random: Random) -> bytes:
    """One to four changes of its values: replaced, left out, doubled, exchanged, nested, renamed."""
    holder = [json.loads(data)]
    for _ in range(random.randint(1, 4)):
        _change(holder, random)
    return json.dumps(holder[0]).encode()


def _change(top: list[Any], random: Random) -> None:
    holder, key = _place(top, random)
    value = holder[key]
    match random.randrange(8):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(random.choice(VALUES))
        case 3 if holder is not top:
            del holder[key]
        case 4:
            holder[key] = _nested(value, random.choice((1, 2, 5, 30)), random)
        case 5 if isinstance(holder, list) and holder is not top:
            holder[key:key] = [copy.deepcopy(value)] * random.choice((1, 3, 40))
        case 6:
            other, its = _place(top, random)
            holder[key] = copy.deepcopy(other[its])
        case _ if isinstance(holder, dict):
            holder[random.choice(("", "x", "\ud800", "policy", "weights", *holder))] = holder.pop(key)


def _place(top: list[Any], random: Random) -> tuple[Any, Any]:
    """A value somewhere: what holds it, and under which key."""
    holder: Any = top
    key: Any = 0
    while isinstance(holder[key], list | dict) and holder[key] and random.random() < 0.85:
        holder = holder[key]
        key = random.choice(list(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
    return holder, key


def _nested(value: Any, depth: int, random: Random) -> Any:
    for _ in range(depth):
        value = [value] if random.random() < 0.5 else {"x": value}
    return value
