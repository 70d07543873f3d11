"""What a training computes in: bfloat16 where this CPU multiplies faster in it; emulated, it is far slower."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def faster_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies faster in it, else float32."""
    times = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.ones(1024, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        a @ b
        start = time.process_time()
        for _ in range(5):
            a @ b
        times[dtype] = time.process_time() - start
    return min(times, key=lambda dtype: times[dtype])


def autocast() -> torch.autocast:
    """Products in `faster_dtype`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=faster_dtype() is torch.bfloat16)
