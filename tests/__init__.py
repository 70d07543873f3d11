"""A package, so that ``python -m tests.host.families`` finds it before any other of that name."""
