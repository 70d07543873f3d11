"""The real ComfyUI for every test: importable in this process, and as a server.

In-process tests may write ``import comfy.sd``, ``import folder_paths`` and ``import lora_conductor.fusion`` at the top
of the file: the host is on ``sys.path`` before any test module is imported, reads only our base directory, and runs on
the CPU unless LORA_CONDUCTOR_TEST_DEVICE=gpu.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before torch is loaded: idle OpenMP threads that spin slow many small operators down many times on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tools"))

import hypothesis  # noqa: E402

import time_table  # noqa: E402
import torchvision_shim  # noqa: E402
from bootstrap_frontend import frontend_args  # noqa: E402
from bootstrap_host import HostError, find_host, host_version  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from draws import TorchDraws, draws_of, seed_draws  # noqa: E402
from host_base import make_base  # noqa: E402
from repo_paths import link_package  # noqa: E402

_base = tempfile.TemporaryDirectory(prefix="lora-conductor-tests-")  # removed when the interpreter ends


@dataclass(frozen=True)
class Host:
    """The ComfyUI under test."""

    path: Path
    version: str

    @property
    def version_tuple(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))


def _enter_host() -> Host:
    try:
        path = find_host()
    except HostError as error:
        pytest.exit(str(error), returncode=3)
    # The repository has a folder `nodes` and ComfyUI a module `nodes`: the host comes first, the repository not at all.
    shadowing = {str(REPO), os.getcwd(), ""}
    sys.path[:] = [str(path), str(link_package()), *(p for p in sys.path if p not in shadowing)]
    torchvision_shim.install()
    from comfy.cli_args import args

    args.base_directory = str(make_base(Path(_base.name)))
    args.cpu = os.environ.get("LORA_CONDUCTOR_TEST_DEVICE", "cpu") != "gpu"
    args.disable_api_nodes = True
    return Host(path, host_version(path))


HOST = _enter_host()

# The same examples in every run of the CI; on a desk each run looks at new ones. Deadlines are the same in both.
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("default"), derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")
_torch_draws = TorchDraws()  # hypothesis keeps no reference of its own
hypothesis.register_random(_torch_draws)


@pytest.fixture(autouse=True)
def own_draws(request: pytest.FixtureRequest) -> None:
    """Whatever a test draws without a generator is its own: seeded by its name, not by what ran before it."""
    seed_draws(request.node.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for fixtures that several tests share: which test asks for them first is chance."""
    if fixturedef.scope == "function":
        return (yield)
    with draws_of(f"{request.node.nodeid}::{fixturedef.argname}[{request.param_index}]"):
        return (yield)


@pytest.fixture(scope="session")
def host() -> Host:
    """Path and version of the ComfyUI under test (COMFYUI_PATH, else COMFYUI_VERSION)."""
    return HOST


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """``models`` folder of the in-process host: the small world's files, and room for a test's own."""
    return Path(_base.name) / "models"


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with this pack and the small world; one for the whole session.

    Its page is the host's own, or the one that COMFYUI_FRONTEND names.
    """
    with ComfyServer(host.path, make_base(tmp_path_factory.mktemp("server")), frontend_args()) as running:
        yield running


@pytest.fixture
def record_property(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Pytest's own, with plain numbers: NumPy's cannot travel from one process of the tests to another."""

    def record(name: str, value: object) -> None:
        request.node.user_properties.append((name, float(value) if isinstance(value, float) else value))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests measured (``record_property``), not only that they were small enough; and the time.

    The reports are those of all processes: pytest-xdist hands them to the one that prints.
    """
    figures = [
        (report.nodeid.rpartition("/")[2], name, value)
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call"
        for name, value in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
        for test, name, value in figures:
            shown = f"{value:.1e}" if isinstance(value, float) else value
            terminalreporter.write_line(f"{shown:>10}  {name}  ({test})")
    reports = [r for group in terminalreporter.stats.values() for r in group if isinstance(r, pytest.TestReport)]
    if reports:
        terminalreporter.section("time per room, all processes together")
        for line in time_table.lines(time_table.time_per_room(reports)):
            terminalreporter.write_line(line)
