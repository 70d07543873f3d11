"""Bake parents of every dialect, load the files by ComfyUI and diffusers, write what was used: ``make baked-files``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

from made_pages import as_called, ended

from ...conftest import HOST, REPO  # first: it makes ComfyUI importable
from ..families.catalogue import FAMILIES
from .dialects import Parents, table
from .diffusers_models import DIFFUSERS

COMMAND = "make baked-files"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", help="only this one; may be given several times")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "baked-files.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import diffusers

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.family or [name for name in DIFFUSERS if FAMILIES[name].in_host]:
            rows += Parents(name, Path(folder)).rows()
            print(name, file=sys.stderr, flush=True)
    versions = f"ComfyUI {HOST.version} and diffusers {diffusers.__version__}"
    options.output.write_text(table(rows, versions, as_called(COMMAND, family=options.family)))
    failed = [
        f"{row.family} {row.parents}: {row.comfyui:.0%} {row.diffusers:.0%} {row.said[:2]}"
        for row in rows
        if not row.passed
    ]
    return ended(f"{len(rows)} files", failed, options.output)


if __name__ == "__main__":
    sys.exit(main())
