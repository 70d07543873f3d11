"""What a routed layer asks of a device in one call, operation by operation: before costs were counted, and now."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from .counting import Variants
from .models import SHAPES

MODEL = "SD1.5"
COMMIT = "fa0096d~1"
# `recommended` at that commit by the same counter, launches a layer by operation, those of 0.1 and more; and in all.
BEFORE = {
    "mul": 6.01,
    "_to_copy": 4.02,
    "div": 4.01,
    "clone": 4.01,
    "mean": 4.01,
    "_local_scalar_dense": 4.0,
    "sum": 4.0,
    "clamp_min": 3.01,
    "add_": 2.0,
    "sigmoid": 2.0,
    "copy_": 2.0,
    "index_select": 1.9,
    "mul_": 1.01,
    "isnan": 1.01,
    "nan_to_num": 1.01,
    "add": 1.01,
    "cat": 1.01,
    "sub": 1.01,
    "bitwise_not": 1.01,
    "pow": 1.0,
    "log": 1.0,
    "neg": 1.0,
    "detach_": 1.0,
    "mm": 0.99,
    "linear": 0.83,
    "addmm_": 0.83,
    "convolution": 0.17,
    "baddbmm_": 0.17,
}
TOTAL_BEFORE = 55.07
LEAST = 0.1


def table() -> Iterator[str]:
    """As a page shows it."""
    import torch

    from lora_conductor.fusion.policies import RECOMMENDED

    with tempfile.TemporaryDirectory() as folder:
        variants = Variants(SHAPES[MODEL], torch.float32, Path(folder))
        cost = variants.cost(RECOMMENDED)
    now = {name: count / variants.layers for name, count in cost.kinds.items()}
    kinds = [name for name in {**now, **BEFORE} if max(now.get(name, 0), BEFORE.get(name, 0)) >= LEAST]
    yield (
        f"`recommended` on the {MODEL} shape, launches a routed layer and call by operation (those of {LEAST} and "
        f"more); before is `{COMMIT}`, with that version's map, record and plan, by the same counter.\n"
    )
    yield "| operation | before | now |\n|---|---|---|"
    for name in sorted(kinds, key=lambda name: (-now.get(name, 0), -BEFORE.get(name, 0))):
        yield f"| `{name}` | {BEFORE.get(name, 0):.2f} | {now.get(name, 0):.2f} |"
    yield f"| in all | {TOTAL_BEFORE:.2f} | {cost.launches:.2f} |"
