"""Measurements that take minutes to hours: ``python -m benchmarks.speed``, ``python -m benchmarks.emoji.demo``."""

import os

# Before torch is loaded: idle OpenMP threads that spin slow many small operators down many times on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
