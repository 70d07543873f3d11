"""Open every example workflow in the real page and save what a user would see to ``output/screenshots/``.

    screenshots.py [--run] [WORKFLOW.json ...]

Every picture is taken in both of the page's renderers. ``--run`` also queues workflows of the small world from the
page and takes pictures in the middle of the run, when it has finished, and of routing map, curves, report and grid:
at 100 % and 50 %, and at 100 % in the light theme. The last picture is the template browser's. Chromium is the one in
$CHROMIUM, else the system's.
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
RENDERERS = ("LiteGraph", "Nodes 2.0")
MAPS = "window.app.graph.nodes.map(n => n.widgets?.find(w => w.name === 'routing_map')?.value).filter(Boolean)"
CLOSE_UPS = {  # node: what it shows, and the node to go to for it
    "KLLayerRouter": ("map", "KLLayerRouter"),
    "MetricGuidedSampler": ("curves", "MetricGuidedSampler"),
    "ComparePolicies": ("grid", "SaveImage"),
    "RoutingReport": ("report", "RoutingReport"),
    "MeasureMyPair": ("vote", "MeasureMyPair"),
}
VIEWS = (("100", "dark", 1.0), ("50", "dark", 0.5), ("light", "light", 1.0))
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


def use_theme(page: Any, name: str) -> None:
    """ "dark" or "light"."""
    page.evaluate("name => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)", name)
    page.wait_for_timeout(500)


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


def start_workflow(page: Any) -> None:
    """Queue the loaded workflow as the Run button does; ``finish_workflow`` waits for its end."""
    page.evaluate(
        """() => {
        const api = window.app.api
        const ended = new Promise(resolve => {
            api.addEventListener('execution_success', () => resolve(null))
            const said = ({ detail }) => `${detail.node_type}: ${detail.exception_message}`
            api.addEventListener('execution_error', event => resolve(said(event)))
            // What the page's own queuePrompt answers differs by its version; what it sends to the server does not.
            const send = api.queuePrompt
            let refused = 'the page did not queue the workflow'
            api.queuePrompt = async (...given) => {
                refused = null
                return send.apply(api, given).catch(error => { refused = `refused: ${error.message}`; throw error })
            }
            window.app.queuePrompt(0).finally(() => {
                api.queuePrompt = send
                if (refused) resolve(refused)
            })
        })
        window.endOfRun = () => ended
    }"""
    )


def finish_workflow(page: Any, timeout_s: float) -> None:
    """Wait until what ``start_workflow`` queued has finished.

    Raises:
        RuntimeError: the run failed; the message is the host's.
    """
    page.set_default_timeout(timeout_s * 1000)
    error = page.evaluate("() => window.endOfRun()")
    if error:
        raise RuntimeError(error)
    page.wait_for_timeout(4000)  # until the notice that the job was queued is gone


def wait_for_half_a_map(page: Any, timeout_s: float) -> None:
    """Wait until some routing map shows half of its steps, or the run is over because nothing was routed."""
    page.evaluate("() => { window.isOver = false; window.endOfRun().then(() => { window.isOver = true }) }")
    half = f"{MAPS}.some(map => map.run && !map.finished && 2 * Object.keys(map.columns).length >= map.steps)"
    page.wait_for_function(f"() => window.isOver || {half}", timeout=timeout_s * 1000)


def show_closely(page: Any, node_type: str, scale: float) -> None:
    """Zoom to a node of that type: 1 is the size at which texts are meant to be read."""
    page.evaluate(
        """([type, scale]) => {
        const { canvas } = window.app, node = window.app.graph.nodes.find(n => n.type === type)
        canvas.ds.scale = scale
        canvas.centerOnNode(node)
        canvas.setDirty(true, true)
    }""",
        [node_type, scale],
    )
    page.wait_for_timeout(800)


def open_report(page: Any, node_type: str) -> None:
    """Unfold the report in words on a node of that type, if it has one."""
    page.evaluate(
        """type => {
        const node = window.app.graph.nodes.find(n => n.type === type)
        const report = node.widgets?.find(w => w.name === 'report_text')?.element
        if (report?.classList.contains('lc-shut')) report.querySelector('.lc-head').click()
    }""",
        node_type,
    )
    page.wait_for_timeout(300)


def show_templates(page: Any) -> None:
    """Open the template browser at this pack's templates."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text("lora-conductor").first.click(timeout=30_000)
    page.wait_for_timeout(4000)


def is_of_small_world(workflow: dict[str, Any]) -> bool:
    """Whether it runs without files of the user's."""
    return any(node["type"] == "EmojiWorldPrompt" for node in workflow["nodes"])


def take_pictures(page: Any, path: Path, target: Path, *, run: bool) -> None:
    """Pictures of one workflow in both renderers; with ``run`` also in the middle of its run and after."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for renderer in RENDERERS:
        for node in workflow["nodes"]:
            if node["type"] in ("KSampler", "MetricGuidedSampler"):
                node["widgets_values"][0] += 1  # a new seed: what the server remembers is not sampled again
        use_renderer(page, renderer)
        name = f"{path.stem}_{renderer.replace(' ', '_').replace('.', '').lower()}"
        load_workflow(page, workflow, path.stem)
        save(page, target / f"{name}.png")
        if not run or not is_of_small_world(workflow):
            continue
        print(f"Running {path.name} ...", flush=True)
        start_workflow(page)
        wait_for_half_a_map(page, timeout_s=600)
        save(page, target / f"{name}_running.png")
        finish_workflow(page, timeout_s=600)
        save(page, target / f"{name}_finished.png")
        for node_type, (shows, place) in CLOSE_UPS.items():
            if not any(node["type"] == node_type for node in workflow["nodes"]):
                continue
            open_report(page, place)
            for view, theme, scale in VIEWS:
                use_theme(page, theme)
                show_closely(page, place, scale)
                save(page, target / f"{name}_{shows}_{view}.png")
            use_theme(page, "dark")


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
            take_pictures(page, path, target, run=options.run)
        show_templates(page)
        save(page, target / "template_browser.png")


def save(page: Any, path: Path) -> None:
    page.screenshot(path=path)
    print(f"wrote {path.relative_to(REPO)}", flush=True)


if __name__ == "__main__":
    main()
