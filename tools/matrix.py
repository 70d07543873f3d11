"""Every supported ComfyUI x every mode of memory that starts here, through a real server: ``make test-matrix``.

    matrix.py                               all of it, into docs/compatibility.md
    matrix.py --host 0.16.3 --mode default  one cell anew, the others as they stand on the page
    matrix.py --full                        the host tests besides, by COMFYUI_VERSION; hours

A cell starts the server in that mode and queues one workflow of the small world: loader, router, report, guiding, plan,
bake, and ComfyUI's own two loaders beside `sum`; then the saved plan is replayed. Exits with 1 when a cell fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap_host import DISTRIBUTIONS, HostError, bring_host
from comfy_server import ComfyServer, ServerError, WorkflowError
from host_base import make_base
from made_pages import PageError, ended, put_table, table_of
from repo_paths import REPO
from world_workflows import smoke, workflows

PAGE = REPO / "docs" / "compatibility.md"
COMMAND = "make test-matrix"
TOLERANCE = 1e-4  # of the range, of `sum` against ComfyUI's two stacked loaders; as in tests/nodes
CPU = ("--cpu",)
MODES: dict[str, tuple[str, ...]] = {
    "default": CPU,
    "cache-none": (*CPU, "--cache-none"),
    "cache-lru 10": (*CPU, "--cache-lru", "10"),
    "cache-ram": (*CPU, "--cache-ram"),
    "disable-smart-memory": (*CPU, "--disable-smart-memory"),
    "reserve-vram 1": (*CPU, "--reserve-vram", "1"),
    "fp16-unet": (*CPU, "--fp16-unet"),
    "bf16-unet": (*CPU, "--bf16-unet"),
    "split attention": (*CPU, "--use-split-cross-attention"),
    "fast": (*CPU, "--fast"),
    # These choose a graphics card; whether they start without one is asked, not assumed.
    "lowvram": ("--lowvram",),
    "novram": ("--novram",),
    "highvram": ("--highvram",),
}
HOST_TESTS = "tests/host"


@dataclass(frozen=True)
class Cell:
    """What a server in one mode did.

    Attributes:
        state: "passed", "failed", or "does not start".
        error: difference of `sum` from ComfyUI's stacked loaders, of the range; None if it did not come to that.
        reason: of what did not pass.
    """

    host: str
    mode: str
    state: str
    error: float | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        if self.state == "passed":
            return f"{self.error:.0e}" if self.error else "0"
        return "**FAILED**" if self.state == "failed" else "does not start"


def measure(host: str, mode: str) -> Cell:
    """Start that ComfyUI in that mode and run the workflow.

    Raises:
        HostError: that version cannot be had.
    """
    tree = bring_host(host)
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        server = ComfyServer(tree, make_base(Path(folder)), device_args=MODES[mode])
        try:
            with server:
                return _judged(host, mode, server)
        except ServerError as error:
            mark = "does not start" if "--cpu" not in MODES[mode] or _unknown_option(server.log) else "failed"
            return Cell(host, mode, mark, reason=_last_words(server.log) or str(error).splitlines()[0])
        except (WorkflowError, TimeoutError, OSError) as error:
            return Cell(host, mode, "failed", reason=str(error).splitlines()[0])


def _judged(host: str, mode: str, server: ComfyServer) -> Cell:
    graph = smoke()
    outputs = workflows.run(server, graph)
    latents = {name: workflows.latent(server, outputs, name) for name in ("routed", "guided", "sum", "core")}
    ranges = latents["core"].max() - latents["core"].min()
    error = float((latents["sum"] - latents["core"]).abs().max() / ranges)
    plan = next((server.base_dir / "output" / "routing_plans").glob("*.json"))
    again = workflows.latent(server, workflows.run(server, replay(graph, plan)), "again")
    wrong = [name for name, latent in latents.items() if not bool(latent.isfinite().all())]
    wrong += [] if error <= TOLERANCE else [f"sum differs from ComfyUI's loaders by {error:.1e}"]
    wrong += [] if again.equal(latents["routed"]) else ["the replay is another picture"]
    wrong += [] if not latents["guided"].equal(latents["routed"]) else ["guidance did nothing"]
    wrong += [] if list((server.base_dir / "output" / "loras").glob("*.safetensors")) else ["no baked file"]
    wrong += [] if workflows.record(outputs, "routed")["steps"] == 3 else ["the report is of another run"]
    return Cell(host, mode, "failed" if wrong else "passed", error, "; ".join(wrong))


def replay(graph: dict[str, Any], plan: Path) -> dict[str, Any]:
    """The workflow's routed picture by its saved plan, as "again"."""
    again = {name: graph[name] for name in ("model", "prompt", "empty", "dual")}
    again["file"] = workflows.node("LoadRoutingPlan", file=f"routing_plans/{plan.name} [output]")
    again["replayed"] = workflows.router("paper")
    again["replayed"]["inputs"]["plan"] = ["file", 0]
    return again | workflows.sampled("again", "replayed", seed=1, steps=3)


def _unknown_option(log: str) -> bool:
    """Older versions do not know every option."""
    return "unrecognized arguments" in log


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def table(cells: Sequence[Cell]) -> str:
    """Modes down, versions across, as Markdown; then the reasons of what did not pass. Empty: not measured."""
    seen = {side: {getattr(cell, side) for cell in cells} for side in ("host", "mode")}
    hosts = [*(h for h in DISTRIBUTIONS if h in seen["host"]), *sorted(seen["host"] - set(DISTRIBUTIONS))]
    modes = [mode for mode in MODES if mode in seen["mode"]]
    found = {(cell.host, cell.mode): cell for cell in cells}
    rows = [f"| mode | started with | {' | '.join(hosts)} |", "|" + " --- |" * (len(hosts) + 2)]
    for mode in modes:
        texts = (found[host, mode].text if (host, mode) in found else "" for host in hosts)
        rows.append(f"| {mode} | `{' '.join(MODES[mode])}` | {' | '.join(texts)} |")
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.reason:
            reasons.setdefault(cell.reason, []).append(f"{cell.mode} on {cell.host}")
    rows += ["", *(f"- {', '.join(where)}: {reason}" for reason, where in reasons.items())]
    return "\n".join(rows).rstrip()


def cells_of(page: str) -> list[Cell]:
    """What stands on the page; of empty cells nothing."""
    lines = table_of(page, COMMAND).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    reasons = [re.fullmatch(r"- (.+? on \S+): (.*)", line) for line in lines]
    told = {where: found[2] for found in reasons if found for where in found[1].split(", ")}
    cells = []
    for mode, _, *texts in rows[2:]:
        for host, text in zip(rows[0][2:], texts, strict=True):
            reason = told.get(f"{mode} on {host}", "")
            if text in ("does not start", "**FAILED**"):
                cells.append(Cell(host, mode, text.strip("*").lower(), reason=reason))
            elif text:
                cells.append(Cell(host, mode, "passed", float(text), reason))
    return cells


def host_tests(host: str) -> str:
    """Run the host's tests against a version; the last line that pytest says.

    Raises:
        HostError: that version cannot be had.
    """
    bring_host(host)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", HOST_TESTS]
    environment = {**os.environ, "COMFYUI_VERSION": host}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1].strip("= ")
    return last if done.returncode == 0 else f"FAILED: {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="append", choices=list(DISTRIBUTIONS), help="only this version; repeatable")
    parser.add_argument("--mode", action="append", choices=list(MODES), help="only this mode; repeatable")
    parser.add_argument("--full", action="store_true", help="the host tests of each version besides")
    options = parser.parse_args()
    hosts, modes = options.host or list(DISTRIBUTIONS), options.mode or list(MODES)
    lines: list[str] = []
    before = cells_of(PAGE.read_text(encoding="utf-8"))
    cells = {(cell.host, cell.mode): cell for cell in before} if options.host or options.mode else {}
    try:
        for mode in modes:
            for host in hosts:
                cell = cells[host, mode] = measure(host, mode)
                print(f"{host:8} {mode:22} {cell.state} {cell.reason or cell.text}", flush=True)
                put_table(PAGE, COMMAND, table(list(cells.values())))
        for host in hosts if options.full else ():
            lines.append(f"- `COMFYUI_VERSION={host} pytest {HOST_TESTS}`: {host_tests(host)}")
            print(lines[-1], flush=True)
        rows = "\n\n".join(part for part in (table(list(cells.values())), "\n".join(lines)) if part)
        put_table(PAGE, COMMAND, rows)
    except (HostError, PageError) as error:
        sys.exit(f"error: {error}")
    failed = [f"{cell.host} {cell.mode}: {cell.reason}" for cell in cells.values() if cell.state == "failed"]
    return ended(f"{len(cells)} cells", failed + [line for line in lines if "FAILED" in line], PAGE)


if __name__ == "__main__":
    sys.exit(main())
