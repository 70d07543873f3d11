"""Start ComfyUI's ``main.py`` in this interpreter: ``run_comfyui.py HOST_DIR [ComfyUI's own arguments]``."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torchvision_shim


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    host = Path(sys.argv[1]).resolve()
    if not (host / "main.py").is_file():
        sys.exit(f"{host} is not a ComfyUI folder: main.py is missing")
    torchvision_shim.install()
    # ComfyUI expects to be the script: its folder first on the path, its arguments alone in argv.
    sys.path[0] = str(host)
    sys.argv = [str(host / "main.py"), *sys.argv[2:]]
    os.chdir(host)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
