"""Input made worse: bytes at random, JSON by its structure, safetensors by its tensors, zip archives by their parts."""

from __future__ import annotations

import copy
import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]
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
NAMES = ("", "x", "\ud800", "policy", "weights")
TOKENS = (b"[", b"]", b"{", b"}", b",", b":", b'"', b"NaN", b"-Infinity", b"1e999", b"null", b"\\ud800", b"\xff", b"\0")


def bytes_with(tokens: Sequence[bytes], most: int | None = None) -> Mutation:
    """Changes bytes: one to four bits or pieces, which are left out, doubled, or replaced by noise or a token.

    Args:
        tokens: what stands for something in such input.
        most: where the part ends that most changes are made in, a file's header for example.
    """

    def worse(data: bytes, random: Random) -> bytes:
        changed = bytearray(data)
        for _ in range(random.randint(1, 4)):
            end = len(changed) if most is None or random.random() < 0.2 else min(len(changed), most)
            start = random.randrange(end + 1)
            stop = min(len(changed), start + random.choice((1, 2, 8, 64)))
            match random.randrange(6):
                case 0 if start < len(changed):
                    changed[start] ^= 1 << random.randrange(8)
                case 1:
                    del changed[start:stop]
                case 2:
                    changed[start:start] = changed[start:stop] * random.choice((1, 2, 50))
                case 3:
                    changed[start:start] = random.choice(tokens) * random.choice((1, 1, 3, 2000))
                case 4 if random.random() < 0.2:
                    del changed[start:]
                case _:
                    changed[start:stop] = random.randbytes(stop - start)
        return bytes(changed)

    return worse


bytes_of = bytes_with(TOKENS)


def json_with(values: Sequence[Any] = (), names: Sequence[str] = ()) -> Mutation:
    """Changes JSON: one to four values are replaced, left out, doubled, exchanged, nested, renamed or multiplied.

    Args:
        values: what may stand anywhere, besides :data:`VALUES`.
        names: of fields, besides those that are there.
    """
    every, called = (*VALUES, *values), (*NAMES, *names)

    def worse(data: bytes, random: Random) -> bytes:
        holder = [json.loads(data)]
        for _ in range(random.randint(1, 4)):
            _change(holder, random, random.choice((every, values or every)), called)
        return json.dumps(holder[0]).encode()

    return worse


json_of = json_with()


def _change(top: list[Any], random: Random, values: Sequence[Any], names: Sequence[str]) -> None:
    holder, key = _place(top, random)
    value = holder[key]
    match random.randrange(9):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(random.choice(values))
        case 3 if holder is not top:
            del holder[key]
        case 4:
            holder[key] = _nested(value, random.choice((1, 2, 5, 30)), random)
        case 5 if isinstance(holder, list) and holder is not top:
            holder[key:key] = [copy.deepcopy(value)] * random.choice((1, 3, 40))
        case 6:
            other, its = _place(top, random)
            holder[key] = copy.deepcopy(other[its])
        case 7 if type(value) in (int, float) and abs(value) < 2**64:
            holder[key] = value * random.choice((0, -1, 2, 1000)) + random.choice((0, 1))
        case 8 if isinstance(holder, dict):
            holder[random.choice(names)] = copy.deepcopy(random.choice(values))
        case _ if isinstance(holder, dict):
            holder[random.choice((*names, *holder))] = holder.pop(key)


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


# Bytes of a number by its name in a safetensors header.
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
DTYPES |= {"BOOL": 1, "U64": 8, "C64": 8, "F4": 1, "F8_E8M0": 1, "nonsense": 4}
NUMBERS = {"NaN": b"\0\0\xc0\x7f", "infinite": b"\0\0\x80\x7f", "largest": b"\xff\xff\x7f\x7f", "zero": b"\0\0\0\0"}


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def file_of(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def safetensors_of(data: bytes, random: Random) -> bytes:
    """A file whose tensors do not belong together: one to four are renamed, lost, doubled, or of another shape, kind
    or size of numbers; the file as such is well formed, mostly."""
    header, numbers = parts_of(data)
    header.pop("__metadata__", None) if random.random() < 0.1 else None
    tensors = {
        key: (at["dtype"], at["shape"], numbers[slice(*at["data_offsets"])])
        for key, at in header.items()
        if key != "__metadata__"
    }
    for _ in range(random.randint(1, 4)):
        if not tensors:
            break
        name = random.choice(list(tensors))
        dtype, shape, content = tensors[name]
        match random.randrange(8):
            case 0:
                del tensors[name]
            case 1:  # another's name, or part of one
                other, at = random.choice(list(tensors)), random.randrange(len(name) + 1)
                tensors[random.choice((name[:at] + other[at:], name[:at], name + ".x", "", "\x1b[2J"))] = tensors.pop(
                    name
                )
            case 2:
                other = random.choice(list(tensors))
                tensors[name], tensors[other] = tensors[other], tensors[name]
            case 3:
                tensors[name] = (random.choice(list(DTYPES)), shape, content)
            case 4:
                number = NUMBERS[random.choice(list(NUMBERS))]
                tensors[name] = (dtype, shape, (number * (len(content) // 4 + 1))[: len(content)])
            case 5:
                shape = list(shape)
                at = random.randrange(len(shape) + 1)
                shape[at : at + random.randint(0, 1)] = random.choice(
                    ([], [1], [0], [2], [3], [512], [1, 1, 1, 1], [2**31], [2**62])
                )
                tensors[name] = (dtype, shape, content)
            case 6:
                tensors[name] = (dtype, [*reversed(shape)], content)
            case _:
                tensors[name] = (dtype, shape[:-1], content)
    made, kept = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        size = math.prod(shape) * DTYPES.get(dtype, 4)
        if random.random() < 0.98:
            content = (content * (size // max(1, len(content)) + 1))[:size] if content and size < 1 << 20 else b""
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(kept), len(kept) + len(content)]}
        kept += content
    if "__metadata__" in header:
        made["__metadata__"] = header["__metadata__"]
    return file_of(made, kept)


def header_of(changes: Mutation) -> Mutation:
    """Changes the header of a safetensors file as JSON, and leaves its tensors."""

    def worse(data: bytes, random: Random) -> bytes:
        header, tensors = parts_of(data)
        text = changes(json.dumps(header).encode(), random)
        return len(text).to_bytes(8, "little") + text + tensors

    return worse


PICKLED = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch\nload\n",
    b"(",
    b"t",
    b"R",
    b"b",
    b".",
    b"}",
    b"]",
    b"N",
    b"K\x00",
)
PICKLED += (
    b"q\x00",
    b"h\x00",
    b"h\xff",
    b"\x8a\x04\xff\xff\xff\x7f",
    b"X\x02\x00\x00\x00\xff\xff",
    b"M\xff\xff",
    b"Q",
    b"\x86",
)
_pickle = bytes_with(PICKLED)


def zip_of(data: bytes, random: Random) -> bytes:
    """A file of PyTorch's whose parts are made worse, most often the pickle, and packed again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    pickle = next(name for name in parts if name.endswith("data.pkl"))
    name = pickle if random.random() < 0.8 else random.choice(list(parts))
    match random.randrange(8):
        case 0:
            parts[name.rpartition("/")[0] + random.choice(("/x", "/../../x", "/data/9"))] = parts.pop(name)
        case 1:
            parts[name] = parts[random.choice(list(parts))]
        case _:
            parts[name] = _pickle(parts[name], random)
    made = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", kind) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()
