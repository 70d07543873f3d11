"""Our extensions on other versions of ComfyUI's page: ``make test-frontends``, into docs/compatibility.md.

    frontends.py                    the version that each supported ComfyUI asks for, and the newest
    frontends.py --version 1.58.1   this one only, its row anew

Each version is fetched into .host and served by the newest ComfyUI (``--front-end-root``). In both renderers the small
world's template is opened and run: map, curves and report must be on their nodes and filled, and nothing of ours may
raise. Exits with 1 when a version fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import screenshots
from bootstrap_frontend import PACKAGE, bring_frontend
from bootstrap_host import DISTRIBUTIONS, HostError, bring_host
from comfy_server import ComfyServer, ServerError
from host_base import make_base
from made_pages import PageError, ended, put_table, table_of
from repo_paths import REPO

PAGE = REPO / "docs" / "compatibility.md"
COMMAND = "make test-frontends"
TEMPLATE = REPO / "example_workflows" / "small_world_demo.json"
PANELS = ("routing_map", "guidance_curves", "report_text")
STEPS = 6
# Which of the panels are on a node, show something, and are as large as they should be.
FILLED = """names => names.filter(name => window.app.graph.nodes.some(node => node.widgets?.some(widget =>
    widget.name === name && widget.value && widget.element?.isConnected && widget.element.clientHeight > 10)))"""


def asked_for() -> dict[str, list[str]]:
    """Frontend versions, with the ComfyUI versions whose requirements name them."""
    found: dict[str, list[str]] = {}
    for host in DISTRIBUTIONS:
        pinned = re.search(rf"^{PACKAGE}==(\S+)", (bring_host(host) / "requirements.txt").read_text(), re.MULTILINE)
        if pinned:
            found.setdefault(pinned[1], []).append(host)
    return found


def measure(frontend: Path) -> list[str]:
    """What is wrong on that page; nothing if all is well."""
    with tempfile.TemporaryDirectory(prefix="frontends-") as folder:
        base = make_base(Path(folder))
        screenshots.prepare_settings(base)
        try:
            with (
                ComfyServer(bring_host(), base, ["--front-end-root", str(frontend)]) as server,
                screenshots.open_page(server) as page,
            ):
                errors: list[str] = []
                page.on("pageerror", lambda error: errors.append(f"{error.message} {error.stack or ''}"))
                return [wrong for name in screenshots.RENDERERS for wrong in _judged(page, name, errors)]
        except ServerError as error:
            return [str(error).splitlines()[0]]


def _judged(page: Any, renderer: str, errors: list[str]) -> list[str]:
    screenshots.use_renderer(page, renderer)
    workflow = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    workflow["id"] = str(uuid.uuid4())
    screenshots.load_workflow(page, workflow, f"frontends-{renderer}")
    short = "([steps, seed]) => window.app.graph.nodes.forEach(node => node.widgets?.forEach(widget => {"
    short += " if (widget.name === 'steps') widget.value = steps; if (widget.name === 'seed') widget.value = seed }))"
    page.evaluate(short, [STEPS, screenshots.RENDERERS.index(renderer)])  # another seed: the server runs nothing twice
    screenshots.start_workflow(page)
    try:
        screenshots.finish_workflow(page, 300)
    except RuntimeError as error:
        return [f"{renderer}: {error}"]
    missing = sorted(set(PANELS) - set(page.evaluate(FILLED, list(PANELS))))
    wrong = [f"{renderer}: no {name}" for name in missing]
    return wrong + [f"{renderer}: {error:.200}" for error in errors if "lora-conductor" in error]


def table(rows: dict[str, tuple[str, str]]) -> str:
    """Version, who asks for it, and what became of it, newest first."""
    order = sorted(rows, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    lines = ["| frontend | asked for by | |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {version} | {' | '.join(rows[version])} |" for version in order)])


def rows_of(page: str) -> dict[str, tuple[str, str]]:
    """What stands on the page."""
    found = re.findall(r"^\| (\d\S*) \| (.*?) \| (.*?) \|$", table_of(page, COMMAND), re.MULTILINE)
    return {version: (asker, state) for version, asker, state in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="append", help="only this one; repeatable")
    options = parser.parse_args()
    try:
        hosts = asked_for()
        newest, _ = bring_frontend(None)
        rows = rows_of(PAGE.read_text(encoding="utf-8")) if options.version else {}
        for version in options.version or [*hosts, *({newest} - set(hosts))]:
            wrong = measure(bring_frontend(version)[1])
            asker = ", ".join(f"ComfyUI {host}" for host in hosts.get(version, [])) or "the newest that can be had"
            rows[version] = (asker, f"**FAILED**: {'; '.join(wrong)}" if wrong else "passed")
            print(f"{version:10} {rows[version][1]}", flush=True)
            put_table(PAGE, COMMAND, table(rows))
    except (HostError, PageError) as error:
        sys.exit(f"error: {error}")
    failed = [f"{version}: {state}" for version, (_, state) in rows.items() if state != "passed"]
    return ended(f"{len(rows)} versions", failed, PAGE)


if __name__ == "__main__":
    sys.exit(main())
