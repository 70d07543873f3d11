"""The loader shows what is known of the chosen files, and swaps subject and style, in the real page."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from comfy_server import ComfyServer

from ..host.workflows import STYLE, SUBJECT
from .test_routing_map import LOADER, ROUTER, load, workflow

FOX, INK = "sub folder/zz #1 fox.safetensors", "zz_ink.safetensors"
CHOOSE = """([id, values]) => { for (const [name, value] of Object.entries(values)) {
    const widget = window.app.graph.getNodeById(id).widgets.find(w => w.name === name)
    widget.value = value; widget.callback?.(value) } }"""
PANEL = """id => { const element = window.app.graph.getNodeById(id).widgets.find(w => w.name === 'files')?.element
    if (!element) return null
    const cards = [...element.querySelectorAll('.lc-file')], of = what => cards.map(card => card.querySelector(what))
    return { shut: element.classList.contains('lc-shut'), head: element.querySelector('.lc-status').textContent,
        words: of('.lc-words').map(found => found?.textContent ?? null),
        facts: of('div:not(.lc-no-picture)').map(found => found.textContent),
        off: cards.map(card => card.classList.contains('lc-off')),
        pictures: [...element.querySelectorAll('img')].map(image => image.naturalWidth),
        elements: element.querySelectorAll('script, b').length } }"""
CLICK = """([id, what]) => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'files').element
    .querySelector(what).click()"""
VALUES = """id => Object.fromEntries(window.app.graph.getNodeById(id).widgets
    .filter(w => w.name.startsWith('subject_') || w.name.startsWith('style_')).map(w => [w.name, w.value]))"""
SOURCES = """id => { const { links, getNodeById } = window.app.graph, node = getNodeById.call(window.app.graph, id)
    return Object.fromEntries(node.inputs.filter(i => i.link !== null).map(i => links.get(i.link)).map(link =>
        [node.inputs[link.target_slot].name, [link.origin_id, link.origin_slot]])) }"""
SENT = "async id => (await window.app.graphToPrompt()).output[id].inputs"
UNDO = "() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()"
HEIGHT = "id => window.app.graph.getNodeById(id).size[1]"
SAVED = "id => window.app.graph.serialize().nodes.find(n => n.id === id)"
OTHER_WAY = {"subject": "style", "style": "subject"}


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> Iterator[None]:
    """Two files that say much of themselves, one with a picture; what one says is hostile."""
    folder = server.base_dir / "models" / "loras"
    fox, ink = folder / FOX, folder / INK
    fox.parent.mkdir()
    save_file(load_file(folder / SUBJECT), fox, {"modelspec.architecture": "flux-1-dev/lora"})
    save_file(load_file(folder / STYLE), ink, {"ss_base_model_version": "sdxl_base_v1-0"})
    made = [fox, ink, fox.with_suffix(".preview.png"), fox.with_suffix(".civitai.info"), ink.with_suffix(".json")]
    Image.new("RGB", (30, 40), "orange").save(made[2])
    made[3].write_text(json.dumps({"trainedWords": ["zzfox", "zz tail"]}))
    made[4].write_text(json.dumps({"activation text": "<b>ink</b><script>window.wasRun = true</script>"}))
    yield
    for path in made:
        path.unlink()
    fox.parent.rmdir()


def opened(page: Any, **values: Any) -> None:
    """The demo with other values on the loader, chosen by hand."""
    load(page, workflow(steps=2), f"files {uuid.uuid4().hex[:6]}")
    page.evaluate(CHOOSE, [LOADER, values])
    page.wait_for_timeout(700)


def other_way_round(found: dict[str, Any]) -> dict[str, Any]:
    """By the other role's names."""
    role = {name: name.split("_", 1) for name in found}
    return {f"{OTHER_WAY[which]}_{what}": found[name] for name, (which, what) in role.items()}


def test_shows_picture_base_and_words(page: Any, renderer: str, files: None) -> None:
    opened(page, subject_lora=FOX, style_lora=INK, style_on=False)
    shown = page.evaluate(PANEL, LOADER)
    assert not shown["shut"] and shown["pictures"] == [30]
    assert shown["words"] == ["zzfox; zz tail", "<b>ink</b><script>window.wasRun = true</script>"]
    assert shown["elements"] == 0 and not page.evaluate("() => window.wasRun")
    assert shown["facts"] == ["subject, FLUX.1, rank 8", "style, SDXL, rank 8, switched off"]
    assert shown["off"] == [False, True] and shown["head"].startswith("zzfox, zz tail / ")
    assert "files" not in page.evaluate(SENT, str(LOADER))
    page.evaluate(CHOOSE, [LOADER, {"style_lora": "None", "style_on": True}])
    page.wait_for_timeout(700)
    shown = page.evaluate(PANEL, LOADER)
    assert shown["words"] == ["zzfox; zz tail", None] and shown["off"] == [False, False]


def test_has_no_panel_where_nothing_is_known(page: Any, renderer: str) -> None:
    opened(page, subject_strength=0.9)
    assert page.evaluate(PANEL, LOADER) is None
    before = page.evaluate(HEIGHT, LOADER)
    page.evaluate(CHOOSE, [LOADER, {"subject_lora": "gone.safetensors", "style_lora": "None"}])
    page.wait_for_timeout(700)
    assert page.evaluate(PANEL, LOADER) is None and page.evaluate(HEIGHT, LOADER) == before


def test_is_quiet_where_the_server_does_not_answer(page: Any, renderer: str, files: None) -> None:
    page.evaluate("() => window.app.extensions.find(e => e.name === 'loraconductor.LoaderFiles').refreshComboInNodes()")
    page.route("**/lora_conductor/about*", lambda route: route.abort())
    failed: list[str] = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    try:
        opened(page, subject_lora=FOX, style_lora=INK)
        assert page.evaluate(PANEL, LOADER) is None and failed == []
    finally:
        page.unroute("**/lora_conductor/about*")
    page.evaluate(CHOOSE, [LOADER, {"subject_lora": FOX}])
    page.wait_for_timeout(700)
    assert page.evaluate(PANEL, LOADER)["words"][0] == "zzfox; zz tail", "asked again once it answers"


def test_loses_only_the_picture_where_the_host_has_none(page: Any, renderer: str, files: None) -> None:
    page.route("**/experiment/models/preview/**", lambda route: route.fulfill(status=404))
    try:
        opened(page, subject_lora=FOX, style_lora=INK)
        shown = page.evaluate(PANEL, LOADER)
        assert shown["pictures"] == [] and shown["words"][0] == "zzfox; zz tail"
    finally:
        page.unroute("**/experiment/models/preview/**")


def test_folds_keeps_its_fold_and_covers_nothing_on_opening(page: Any, renderer: str, files: None) -> None:
    opened(page, subject_lora=FOX, style_lora=INK)
    tall = page.evaluate(HEIGHT, LOADER)
    saved = page.evaluate("() => window.app.graph.serialize()")
    page.evaluate(CLICK, [LOADER, ".lc-head"])
    page.wait_for_timeout(500)
    assert page.evaluate(PANEL, LOADER)["shut"]
    shut = page.evaluate("() => window.app.graph.serialize()")
    for graph, is_shut in ((saved, False), (shut, True)):
        load(page, graph, f"kept {uuid.uuid4().hex[:6]}")
        page.wait_for_timeout(700)
        assert page.evaluate(PANEL, LOADER)["shut"] is is_shut
    load(page, saved, f"kept {uuid.uuid4().hex[:6]}")
    page.wait_for_timeout(700)
    assert page.evaluate(HEIGHT, LOADER) == pytest.approx(tall, abs=1)
    for _ in range(2):
        page.evaluate("""() => { const { canvas, graph } = window.app
            canvas.emitBeforeChange?.(); graph.getNodeById(4).title += '.'; canvas.emitAfterChange?.() }""")
        page.wait_for_timeout(300)
        page.evaluate(UNDO)
        page.wait_for_timeout(1000)
        assert page.evaluate(HEIGHT, LOADER) <= tall + 1 and not page.evaluate(PANEL, LOADER)["shut"]
    # As an older version saved it.
    old = workflow(steps=2)
    node = next(node for node in old["nodes"] if node["id"] == LOADER)
    node["widgets_values"] = [FOX, INK, *node["widgets_values"][2:]]
    load(page, old, "old")
    page.wait_for_timeout(700)
    assert page.evaluate(PANEL, LOADER)["shut"]


@pytest.mark.parametrize("how", ["button", "menu"])
def test_swaps_values_and_links_in_one_step_back(page: Any, renderer: str, files: None, how: str) -> None:
    opened(page, subject_lora=FOX, style_lora=INK, subject_strength=0.5, subject_clip_strength=0.25, style_on=False)
    page.evaluate(
        """([id, type]) => { const { graph, LiteGraph } = window.app, { changeTracker } =
            window.app.extensionManager.workflow.activeWorkflow
        const stack = window.LiteGraph.createNode(type), number = window.LiteGraph.createNode('PrimitiveFloat')
        graph.add(stack); graph.add(number)
        const node = graph.getNodeById(id), slot = name => node.inputs.findIndex(i => i.name === name)
        stack.connect(3, node, slot('subject_stack'))
        number.connect(0, node, slot('style_strength'))
        window.app.canvas.emitBeforeChange(); window.app.canvas.emitAfterChange() }""",
        [LOADER, "DualLoRADynamicLoader"],
    )
    page.wait_for_timeout(500)
    values, sources = page.evaluate(VALUES, LOADER), page.evaluate(SOURCES, LOADER)
    sent = page.evaluate(SENT, str(LOADER))
    assert sources["subject_stack"][1] == 3 and "style_strength" in sources and "style_stack" not in sources
    if how == "button":
        page.evaluate(CLICK, [LOADER, ".lc-swap"])
    else:
        page.evaluate(
            """id => { const items = window.app.collectNodeMenuItems(window.app.graph.getNodeById(id))
            items.find(item => item?.content === 'Swap subject and style').callback() }""",
            LOADER,
        )
    page.wait_for_timeout(700)
    assert page.evaluate(VALUES, LOADER) == other_way_round(values)
    roles = {name: source for name, source in sources.items() if name.startswith(tuple(OTHER_WAY))}
    rest = {name: source for name, source in sources.items() if name not in roles}
    assert page.evaluate(SOURCES, LOADER) == other_way_round(roles) | rest
    now = page.evaluate(SENT, str(LOADER))
    assert {name: now[name] for name in now if name.startswith(tuple(OTHER_WAY))} == other_way_round(
        {name: sent[name] for name in sent if name.startswith(tuple(OTHER_WAY))}
    )
    assert (now["balance"], now["model"]) == (sent["balance"], sent["model"])
    assert page.evaluate(PANEL, LOADER)["facts"][0] == "subject, SDXL, rank 8, switched off"
    page.evaluate(UNDO)
    page.wait_for_timeout(1200)
    assert page.evaluate(VALUES, LOADER) == values and page.evaluate(SOURCES, LOADER) == sources
    assert page.evaluate(PANEL, LOADER)["facts"][0] == "subject, FLUX.1, rank 8"


def test_the_menu_is_the_loader_s_alone(page: Any, renderer: str) -> None:
    load(page, workflow(steps=2), "menus")
    names = """id => window.app.collectNodeMenuItems(window.app.graph.getNodeById(id)).map(item => item?.content)"""
    assert "Swap subject and style" in page.evaluate(names, LOADER)
    assert "Swap subject and style" not in page.evaluate(names, ROUTER)


def test_swaps_what_comes_into_a_subgraph(page: Any, renderer: str, files: None) -> None:
    opened(page, subject_lora=FOX, style_lora=INK)
    swapped = page.evaluate(
        """id => { const { graph, canvas } = window.app, outer = window.LiteGraph.createNode('DualLoRADynamicLoader')
        graph.add(outer)
        const node = graph.getNodeById(id)
        outer.connect(3, node, node.inputs.findIndex(i => i.name === 'subject_stack'))
        const { subgraph } = graph.convertToSubgraph(new Set([node]))
        const inner = subgraph.nodes.find(n => n.type === 'DualLoRADynamicLoader')
        const read = () => Object.fromEntries(inner.inputs.filter(i => i.name.endsWith('_stack')).map(i => [i.name,
            i.link === null ? null : String(subgraph.links.get(i.link).origin_id)]))
        const before = read()
        window.app.collectNodeMenuItems(inner).find(item => item?.content === 'Swap subject and style').callback()
        return [before, read()] }""",
        LOADER,
    )
    assert swapped == [{"subject_stack": "-10", "style_stack": None}, {"subject_stack": None, "style_stack": "-10"}]
