"""ComfyUI and this pack in a benchmark's own process."""

from __future__ import annotations

import sys

import torchvision_shim
from bootstrap_host import find_host
from repo_paths import REPO, link_package


def enter_host(cpu: bool = True) -> None:
    """Make ComfyUI and this pack importable in this process; before anything of them is imported.

    ComfyUI is no package, so its folder has to be on ``sys.path``: first, and the repository, which ``python -m`` put
    there, not at all. Its folder ``nodes`` must not stand in for ComfyUI's module of that name.

    Args:
        cpu: compute on the CPU, whatever else there is.

    Raises:
        HostError: there is no ComfyUI to be found.
    """
    others = (p for p in sys.path if p not in ("", str(REPO)))
    sys.path[:] = [str(find_host()), str(link_package()), *others]
    torchvision_shim.install()
    from comfy.cli_args import args

    args.cpu = cpu
