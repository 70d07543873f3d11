"""Open every example workflow in the real page and save what a user would see to ``output/screenshots/``.

    screenshots.py [--run] [WORKFLOW.json ...]

``--run`` also queues the workflow from the page and takes a second picture when it has finished. Chromium is the one
in $CHROMIUM, else the system's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bootstrap_host import HostError, find_host
from comfy_server import ComfyServer
from host_base import make_base, named_base
from repo_paths import OUTPUT, REPO

# No sandbox: containers run as root. The rest keeps the browser from talking to anyone but our server.
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WINDOW = {"width": 2560, "height": 1440}
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str:
    """Path of a Chromium; Debian's is installed when there is none and we may.

    Raises:
        SystemExit: none found, with what to do about it.
    """
    if path := os.environ.get("CHROMIUM"):
        return path
    if not any(map(shutil.which, _NAMES)) and shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing chromium (apt-get) ...", flush=True)
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "--quiet", *command], check=True, stdin=subprocess.DEVNULL)
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    sys.exit("error: no Chromium found; install it (Debian: apt-get install chromium) or set CHROMIUM=/path/to/it")


def prepare_settings(base: Path) -> None:
    """Answer the questions that the page asks a new user, so that nothing lies over the workflow."""
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    answers = {
        "Comfy.TutorialCompleted": True,
        "Comfy.InstalledVersion": "1.0.0",
        "Comfy.Release.Status": "skipped",
        "Comfy.Minimap.Visible": False,
        "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts stay, however far the view is zoomed out
    }
    settings.write_text(json.dumps(answers))


@contextmanager
def open_page(server: ComfyServer) -> Iterator[Any]:
    """The page of a running server in headless Chromium, ready for ``window.app`` calls (a playwright ``Page``)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(viewport=WINDOW)
            page.goto(server.url)
            page.wait_for_function("() => window.app?.graph && window.app?.canvas", timeout=90_000)
            # Our nodes are registered once every definition has arrived.
            page.wait_for_function("() => window.LiteGraph?.registered_node_types?.KSampler", timeout=90_000)
            yield page
        finally:
            browser.close()


def use_renderer(page: Any, name: str) -> None:
    """Draw nodes on the canvas ("LiteGraph") or as page elements ("Nodes 2.0")."""
    page.evaluate("on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", name == "Nodes 2.0")
    page.wait_for_timeout(500)


def load_workflow(page: Any, workflow: dict[str, Any], name: str) -> None:
    """Load a UI-format workflow under ``name`` and show all of it."""
    page.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name)", [workflow, name])
    page.keyboard.press("Escape")  # a dialog about missing models or nodes would stay in the picture, if there is one
    page.wait_for_timeout(1000)
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)


def run_workflow(page: Any, timeout_s: float) -> None:
    """Queue the loaded workflow as the Run button does and wait until the queue is empty.

    Raises:
        RuntimeError: the run failed; the message is the host's.
    """
    finished = """() => new Promise(resolve => {
        const api = window.app.api
        api.addEventListener('execution_success', () => resolve(null))
        api.addEventListener('execution_error', e => resolve(`${e.detail.node_type}: ${e.detail.exception_message}`))
        window.app.queuePrompt(0).then(ok => { if (!ok) resolve('the server refused the workflow') })
    })"""
    page.set_default_timeout(timeout_s * 1000)
    error = page.evaluate(finished)
    if error:
        raise RuntimeError(error)
    page.wait_for_timeout(4000)  # until the notice that the job was queued is gone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflows", nargs="*", type=Path)
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    workflows = options.workflows or sorted((REPO / "example_workflows").glob("*.json"))
    if not workflows:
        sys.exit("error: no workflow in example_workflows/")
    target = OUTPUT / "screenshots"
    target.mkdir(parents=True, exist_ok=True)
    try:
        host = find_host()
    except HostError as error:
        sys.exit(f"error: {error}")
    base = make_base(named_base("screenshots"))
    prepare_settings(base)
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(host, base) as server, open_page(server) as page:
        for path in workflows:
            load_workflow(page, json.loads(path.read_text(encoding="utf-8")), path.stem)
            save(page, target / f"{path.stem}.png")
            if options.run:
                print(f"Running {path.name} ...", flush=True)
                run_workflow(page, timeout_s=600)
                save(page, target / f"{path.stem}_finished.png")


def save(page: Any, path: Path) -> None:
    page.screenshot(path=path)
    print(f"wrote {path.relative_to(REPO)}", flush=True)


if __name__ == "__main__":
    main()
