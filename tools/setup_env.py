"""Make the developers' environment: ``.venv`` with torch and everything ComfyUI and our tests need, and ComfyUI itself.

Runs under any Python >= 3.10 without third-party packages. Run again it does nothing, until what is to be installed
changes. TORCH_INDEX_URL names another index for torch (a CUDA or ROCm build, say).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bootstrap_host import DEFAULT_VERSION, HostError, bring_host, host_version
from repo_paths import PACKAGE_PATH, REPO, VENV, link_package

TORCH = "torch==2.13.0"
# The releases made for that torch. Installed without their dependencies, which would pull a second torch.
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_TRIO = re.compile(r"(torch|torchvision|torchaudio)\b(?!-)", re.IGNORECASE)

PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed.sha256"
LOG = VENV / "pip.log"


class SetupError(RuntimeError):
    """Set-up cannot go on; the message says why."""


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done and, when it is done, how long it took."""
    print(f"  {text} ...", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def pip(*arguments: str) -> None:
    """Run pip of the environment; its output goes to the log and is shown when it fails."""
    command = [str(PYTHON), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        start = log.tell()
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code:
        said = LOG.read_bytes()[start:].decode(errors="replace").splitlines()
        raise SetupError("\n".join([*said[-25:], f"pip failed (all of its output: {LOG})"]))


def host_requirements(requirements: str) -> str:
    """ComfyUI's requirements without torch and its companions, which are installed first and pinned."""
    return "\n".join(line for line in requirements.splitlines() if not _TRIO.match(line.strip())) + "\n"


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA or AMD GPU that torch could use."""
    return any(Path(p).exists() for p in ("/proc/driver/nvidia/version", "/dev/kfd")) or bool(
        shutil.which("nvidia-smi")
    )


def torch_index() -> list[str]:
    """pip arguments that choose where torch comes from.

    pip's default is taken wherever it suits: with a GPU, and also without one where the default is a CPU build
    already. On Linux PyPI's build pulls gigabytes of CUDA libraries, so there a CPU-only machine is sent to PyTorch's
    own index.
    """
    if url := os.environ.get("TORCH_INDEX_URL"):
        return ["--index-url", url]
    if has_gpu() or sys.platform != "linux":
        return []
    report = VENV / "torch-report.json"
    pip("install", "--dry-run", "--no-deps", "--ignore-installed", "--report", str(report), TORCH)
    needs = json.loads(report.read_text())["install"][0]["metadata"].get("requires_dist", [])
    return ["--index-url", TORCH_CPU_INDEX] if wants_cuda(needs) else []


def wants_cuda(requires_dist: list[str]) -> bool:
    """Whether a torch build with these requirements is a CUDA build."""
    return any(re.match(r"(nvidia|cuda|triton)\b", need) for need in requires_dist)


def install(requirements: str) -> None:
    """Create or update the virtual environment.

    Args:
        requirements: text of ComfyUI's requirements.txt.
    """
    if not PYTHON.exists():
        with step("virtual environment .venv"):
            try:
                venv.create(VENV, clear=True, with_pip=True, symlinks=os.name != "nt")
            except subprocess.CalledProcessError as error:
                raise SetupError("this Python cannot make virtual environments (Debian: python3-venv)") from error
            pip("install", "--upgrade", "pip")
    LOG.unlink(missing_ok=True)
    with step(f"{TORCH} and companions"):
        index = torch_index()
        pip("install", *index, TORCH)
        pip("install", *index, "--no-deps", *TORCH_COMPANIONS)
    constraints, host = VENV / "constraints.txt", VENV / "requirements-host.txt"
    constraints.write_text("\n".join((TORCH, *TORCH_COMPANIONS)) + "\n")
    host.write_text(host_requirements(requirements))
    with step("what ComfyUI, tests and benchmarks need"):
        dev = REPO / "requirements-dev.txt"
        pip("install", "--constraint", str(constraints), "--requirement", str(host), "--requirement", str(dev))
    with step("check: import torch, torchvision, torchaudio"):
        check = "import torchvision_shim as s; s.install(); import torch, torchvision, torchaudio; torch.ones(1) + 1"
        done = subprocess.run([str(PYTHON), "-c", check], cwd=REPO / "tools", stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SetupError("the installed torch, torchvision and torchaudio do not import together")


def make_importable() -> None:
    """Let the environment import this repository as ``lora_conductor``, and the tools by their names."""
    link_package()
    (site_packages,) = sorted(VENV.glob("lib/python*/site-packages")) or [VENV / "Lib" / "site-packages"]
    (site_packages / "lora_conductor_dev.pth").write_text(f"{PACKAGE_PATH}\n{REPO / 'tools'}\n")


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 - this script is what tells people
        sys.exit("error: Python 3.10 or newer is needed; choose one with: make PYTHON=python3.12 ...")
    try:
        host = bring_host()
        # Every version we know runs with the newest one's requirements, so switching versions reinstalls nothing.
        newest = host if os.environ.get("COMFYUI_PATH") else bring_host(DEFAULT_VERSION)
        requirements = (newest / "requirements.txt").read_text()
        inputs = [Path(__file__).read_text(), (REPO / "requirements-dev.txt").read_text(), requirements, str(REPO)]
        key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
        if not (PYTHON.exists() and STAMP.exists() and STAMP.read_text() == key):
            print("Setting up the development environment", flush=True)
            start = time.monotonic()
            install(requirements)
            STAMP.write_text(key)
            print(f"Environment ready after {time.monotonic() - start:.0f} s", flush=True)
        make_importable()
        print(f"ComfyUI {host_version(host)} in {host}", flush=True)
    except (HostError, SetupError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
