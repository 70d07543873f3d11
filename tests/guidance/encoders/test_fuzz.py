"""Encoder files made worse: nothing but named refusals, no network, nothing run, bounded in time and memory."""

import collections
import resource
import time
import traceback
from random import Random

import pytest

from . import fuzzing
from .test_hostile_files import no_network  # noqa: F401 - a fixture for every test

CASES = 400


@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_what_is_made_worse_was_good(kind, tmp_path):
    for seed in range(6):
        kind(Random(seed), tmp_path, worse=False)


def test_files_made_worse_are_built_or_refused(record_property):
    fuzzing.case(0)
    before, slowest, faults = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, collections.Counter()
    for seed in range(CASES):
        start = time.process_time()
        try:
            fuzzing.case(seed)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            faults[f"seed {seed}: {type(error).__name__} in {place.filename}:{place.lineno}: {error}"[:400]] += 1
        slowest = max(slowest, time.process_time() - start)
    assert not faults
    record_property("slowest case, s", slowest)
    assert slowest < 5.0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9
