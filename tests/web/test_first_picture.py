"""The walk of a new user, by mouse and keyboard: from the template browser to a picture of his own two LoRAs.

With a folder in LORA_CONDUCTOR_WALK, what he sees at each step is saved there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import screenshots
from bootstrap_frontend import frontend_args
from comfy_server import ComfyServer
from host_base import make_base
from repo_paths import REPO, link

from ..templates.tiny_families import write_pair

TINY_NODES = REPO / "tests" / "templates" / "tiny_nodes"
FILES = {  # of the two templates; without a byte: the small models of `tiny_nodes` are in their place
    "checkpoints": ["Illustrious-XL-v0.1.safetensors"],
    "diffusion_models": ["z_image_turbo_bf16.safetensors"],
    "text_encoders": ["qwen_3_4b.safetensors"],
    "vae": ["ae.safetensors"],
}
PLACE = """([type, widget]) => {
    const { canvas, graph } = window.app, node = graph.nodes.find(n => n.type === type)
    const { y, last_y: last } = node.widgets.find(w => w.name === widget)
    const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + (y ?? last) + 10]
    const [left, top] = canvas.ds.convertOffsetToCanvas(at)
    const box = canvas.canvas.getBoundingClientRect()
    return [box.left + left, box.top + top] }"""
SIZE = """() => { const small = VALUES
    window.app.graph.nodes.forEach(n => n.widgets?.forEach(w => { if (small[w.name]) w.value = small[w.name] })) }"""
TITLES = """() => [...document.querySelectorAll('[role=dialog] h3')].map(title => title.innerText.trim())
    .filter(title => /^\\d\\d_/.test(title))"""
SMALL = {"width": 64, "height": 64, "steps": 3}


class Walk:
    """One user: what he clicks and types, counted, and what he sees."""

    def __init__(self, page: Any, name: str) -> None:
        self.page, self.name = page, name
        self.clicks = self.steps = 0
        self.began = time.monotonic()

    def click(self, *at: Any) -> None:
        self.clicks += 1
        if len(at) == 1:
            at[0].click(timeout=20_000)
        else:
            self.page.mouse.click(*at)
        self.page.wait_for_timeout(400)

    def sees(self) -> None:
        self.steps += 1
        if folder := os.environ.get("LORA_CONDUCTOR_WALK"):
            self.page.wait_for_timeout(600)
            self.page.screenshot(path=Path(folder) / f"{self.name}_{self.steps}.png")

    def choose(self, node_type: str, widget: str, value: str) -> None:
        """A choice of a menu on the canvas."""
        self.click(*self.page.evaluate(PLACE, [node_type, widget]))
        self.click(self.page.locator(".litecontextmenu .litemenu-entry", has_text=value).first)

    def replace(self, old: str, new: str) -> None:
        """A word of the prompt: a double click on it would do, and then type."""
        box = self.page.locator("textarea").filter(has_text="").all()
        texts = [area for area in box if old in area.input_value()]
        assert texts, f"no prompt says {old}"
        self.clicks += 1
        texts[0].fill(texts[0].input_value().replace(old, new))


@pytest.fixture(scope="module")
def user(host: Any, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a ComfyUI that has the files of the two templates, and a pair of LoRAs for each."""
    base = make_base(tmp_path_factory.mktemp("walk"), world=False)
    link(TINY_NODES, base / "custom_nodes" / "tiny_nodes")
    for folder, names in FILES.items():
        for name in names:
            (base / "models" / folder / name).touch()
    for family in ("SDXL", "ZImage"):
        write_pair(base / "models" / "loras", family)
    screenshots.prepare_settings(base)
    with ComfyServer(host.path, base, frontend_args()) as server, screenshots.open_page(server) as page:
        screenshots.use_renderer(page, "LiteGraph")
        yield page


@pytest.mark.parametrize(
    "template, family",
    [("02_illustrious_pony_character_x_style", "SDXL"), ("04_z_image_turbo_subject_x_style", "ZImage")],
)
def test_from_the_template_browser_to_a_picture(user: Any, template: str, family: str, record_property: Any) -> None:
    walk = Walk(user, template.split("_")[0])
    walk.clicks += 1  # the button of the template browser
    screenshots.show_templates(user)
    walk.clicks += 1  # this pack's, in its list
    walk.sees()
    shown = user.evaluate(TITLES)
    assert len(shown) == len(set(shown)) >= 12, "in the server's order, which is the disk's; A to Z sorts them"
    walk.click(user.get_by_role("dialog").get_by_text(template).first)
    user.wait_for_function("() => window.app.graph.nodes.some(n => n.type === 'DualLoRADynamicLoader')")
    user.wait_for_timeout(1500)
    walk.sees()
    opened = time.monotonic()
    assert user.evaluate("() => window.app.graph.nodes.filter(n => n.has_errors).length") == 0
    walk.choose("DualLoRADynamicLoader", "subject_lora", f"subject_{family}")
    walk.choose("DualLoRADynamicLoader", "style_lora", f"style_{family}")
    walk.replace("SUBJECT_TRIGGER", "nekomimi")
    walk.replace("STYLE_TRIGGER", "inkwash")
    walk.sees()
    user.evaluate(SIZE.replace("VALUES", json.dumps(SMALL)))  # for the test's sake: no picture of 1024 pixels on a CPU
    user.evaluate(
        """() => { window.runs = []
        const { api } = window.app
        for (const kind of ['execution_success', 'execution_error'])
            api.addEventListener(kind, event => window.runs.push([kind, event.detail.exception_message ?? ''])) }"""
    )
    walk.click(user.get_by_role("button", name="Run").first)
    queued = time.monotonic()
    user.wait_for_function("() => window.runs.length > 0", timeout=120_000)
    assert user.evaluate("() => window.runs[0]") == ["execution_success", ""]
    user.wait_for_timeout(3000)
    walk.sees()
    headline = """() => window.app.graph.nodes.find(n => n.type === 'DualLoRADynamicLoader')
        .widgets.find(w => w.name === 'report_text').element.innerText"""
    assert "layers routed, 0 keys left out" in user.evaluate(headline)
    shown = "kind => window.app.graph.nodes.find(n => n.type === kind).imgs?.length"
    assert user.evaluate(shown, "SaveImage") == 1 and user.evaluate(shown, "PreviewImage") == 1
    record_property("clicks from the template browser to a queued picture", walk.clicks)
    record_property("seconds from the opened template to a queued picture, by a script", round(queued - opened, 1))
