"""What a blind vote needs: the pictures of each seed as files for core's own /view, under names that say nothing.

The server keeps nothing of the vote; core empties the folder of such files when it starts.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

from ...fusion.routing import name_of
from ..core import SamplerCall, printable, write_for_now
from .drawing import drawn
from .pair import KINDS, MeasuredPair

QUICK = 1  # of PNG's levels of compression


def ballot_of(pair: MeasuredPair, call: SamplerCall) -> dict[str, Any]:
    """The seeds that have all pictures, for the page.

    Returns:
        ``setup``, which votes count together: the same files, strengths, policy and sampling, whatever the seed and the
        prompt; ``policy``, its name; ``pairs``, each with its ``seed``, an ``id`` that tells whether it was voted on
        before, and by kind the names of its ``pictures`` in core's temporary folder.
    """
    pairs = []
    for seed in pair.whole:
        pages = {kind: drawn(pair.shots[kind, seed].image) for kind in KINDS}
        content = hashlib.sha256(b"".join(page.tobytes() for page in pages.values())).hexdigest()
        saving = {kind: partial(page.save, compress_level=QUICK) for kind, page in pages.items()}
        names = {kind: write_for_now(".png", save) for kind, save in saving.items()}
        pairs.append({"id": content[:12], "seed": seed, "pictures": names})
    return {"setup": _setup(pair, call), "policy": printable(name_of(pair.spec.policy)), "pairs": pairs}


def _setup(pair: MeasuredPair, call: SamplerCall) -> str:
    sampling = (call.steps, call.cfg, call.sampler_name, call.scheduler, call.denoise)
    return hashlib.sha256(json.dumps([pair.spec.header, sampling], sort_keys=True).encode()).hexdigest()[:12]
