"""The blind vote in the real page: chance decides the order, nothing tells it, the tally stays with the workflow."""

from __future__ import annotations

import copy
import json
import math
import uuid
from typing import Any

import pytest

from comfy_server import ComfyServer
from repo_paths import REPO

from .test_routing_map import load

WORLD = json.loads((REPO / "benchmarks/emoji/workflows/measure_my_pair.json").read_text(encoding="utf-8"))
NODE = next(node["id"] for node in WORLD["nodes"] if node["type"] == "MeasureMyPair")
WIDGET = f"window.app.graph.getNodeById({NODE})?.widgets?.find(w => w.name === 'pair_vote')"
STORED = f"() => window.app.graph.getNodeById({NODE}).properties['lora_conductor.pair_vote'] ?? null"
RUN = """async () => {
    const api = window.app.api
    const ended = new Promise(resolve => {
        api.addEventListener('execution_success', () => resolve(null), { once: true })
        api.addEventListener('execution_error', e => resolve(e.detail.exception_message), { once: true })
    })
    await window.app.queuePrompt(0)
    const error = await ended
    await new Promise(resolve => setTimeout(resolve, 500))
    return error
}"""
PRESS = f"""text => {{ const found = [...{WIDGET}.element.querySelectorAll('button')]
    .find(b => b.textContent === text && !b.hidden); if (!found) throw Error('no button ' + text); found.click() }}"""
LOOK = f"""() => {{ const root = {WIDGET}.element, texts = [...root.querySelectorAll('.lc-vote-said')]
    return {{ status: root.querySelector('.lc-status').textContent, question: texts[0].textContent,
        said: texts.at(-1).textContent, ready: !root.querySelector('.lc-vote-choice').disabled,
        files: [...root.querySelectorAll('img')].map(i => new URL(i.src, location).searchParams.get('filename')),
        shown: !root.querySelector('.lc-vote-pictures').hidden, html: root.outerHTML }} }}"""


def workflow(seed: int | None = None, *, seeds: int = 3, cfg: float = 2.5) -> dict[str, Any]:
    made = copy.deepcopy(WORLD)
    made["id"] = str(uuid.uuid4())
    values = next(node for node in made["nodes"] if node["id"] == NODE)["widgets_values"]
    values[:5] = [uuid.uuid4().int % 10**6 if seed is None else seed, "fixed", seeds, 2, cfg]
    return made


def run(page: Any, graph: dict[str, Any]) -> None:
    load(page, graph, "vote")
    assert page.evaluate(RUN) is None
    wait_for_pictures(page)


def wait_for_pictures(page: Any) -> None:
    page.wait_for_function(f"() => {WIDGET} && ({LOOK})().ready", timeout=20_000)


def vote_for(page: Any, kind: str) -> None:
    """Press the side that shows a kind of picture, which the files' names alone tell, and only to the data."""
    wait_for_pictures(page)
    files = page.evaluate(LOOK)["files"]
    pairs = page.evaluate(STORED)["pairs"]
    (kinds,) = [names for pair in pairs if set(files) <= set((names := pair["pictures"]).values())]
    side = [name for name, file in kinds.items() if file == files[0]]
    assert kind == "neither" or kind in [n for f in files for n, file in kinds.items() if file == f]
    page.evaluate(PRESS, "neither" if kind == "neither" else "left" if side == [kind] else "right")
    page.wait_for_timeout(300)


def test_votes_are_counted_and_survive_reload_and_undo(page: Any, renderer: str) -> None:
    run(page, workflow())
    look = page.evaluate(LOOK)
    assert look["status"] == "0 of 3 judged" and look["shown"] and "better picture" in look["question"]
    assert "hidden" in look["said"] and not any(
        word in look["html"].split("lc-vote-row")[0] for word in ("ours", "recommended")
    )
    place = "window.app.graph.nodes.find(n => n.type === 'PreviewAny').pos[0]"
    at = page.evaluate(f"() => {{ const before = {place}; {place} += 40; return before }}")
    vote_for(page, "ours")
    vote_for(page, "stacked")
    assert page.evaluate(LOOK)["status"] == "2 of 3 judged"
    page.keyboard.press("Escape")
    before = page.evaluate(STORED)
    assert sorted(before["votes"][before["setup"]]["stacked"].values()) == ["ours", "stacked"]
    height = f"() => window.app.graph.getNodeById({NODE}).size[1]"
    size = page.evaluate(height)
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_timeout(1200)
    assert page.evaluate(f"() => {place}") == at, "the votes are no steps"
    assert page.evaluate(LOOK)["status"] == "2 of 3 judged", "a step back takes no vote back"
    assert page.evaluate(STORED)["votes"] == before["votes"]
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Redo')")
    page.wait_for_timeout(1200)
    assert page.evaluate(f"() => {place}") == at + 40
    assert page.evaluate(STORED)["votes"] == before["votes"] and abs(page.evaluate(height) - size) <= 1, "no growth"
    wait_for_pictures(page)
    vote_for(page, "neither")
    look = page.evaluate(LOOK)
    # Nodes 2.0 keeps the height that a node once had.
    assert page.evaluate(height) < size - (100 if renderer == "LiteGraph" else 0), "no empty box where pictures were"
    assert not look["shown"] and look["question"].startswith("All are judged")
    assert look["said"] == "recommended 1, stacked 1, neither 1 \u00b7 p = 1.0 (sign test)"
    page.wait_for_timeout(1500)  # the page saves its draft a moment later
    page.reload()
    page.wait_for_function(f"() => window.app?.graph?.nodes?.length && {WIDGET}", timeout=90_000)
    page.wait_for_timeout(1000)
    assert page.evaluate(LOOK)["said"] == look["said"]


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_each_setting_and_rival_has_its_own_tally(page: Any, renderer: str) -> None:
    graph = workflow(seed=11, seeds=2)
    run(page, graph)
    vote_for(page, "ours")
    vote_for(page, "ours")
    assert "recommended 2, stacked 0" in page.evaluate(LOOK)["said"] and "p = 0.50" in page.evaluate(LOOK)["said"]
    choose = f"""rival => {{ const s = {WIDGET}.element.querySelector('select'); s.value = rival
        s.dispatchEvent(new Event('change')) }}"""
    page.evaluate(choose, "base")
    wait_for_pictures(page)
    assert page.evaluate(LOOK)["status"] == "0 of 2 judged"
    vote_for(page, "base")
    page.evaluate(PRESS, "show the tally")
    assert "recommended 0, no LoRA 1" in page.evaluate(LOOK)["said"]
    page.evaluate(PRESS, "reset")
    assert page.evaluate(LOOK)["status"] == "0 of 2 judged"
    page.evaluate(choose, "stacked")
    assert "recommended 2, stacked 0" in page.evaluate(LOOK)["said"]
    widgets = f"window.app.graph.getNodeById({NODE}).widgets.find(w => w.name === '%s').value = %s"
    for name, value, judged in (("cfg", 3, "0 of 2"), ("cfg", 2.5, "2 of 2"), ("seed", 12, "1 of 2")):
        page.evaluate(f"() => {{ {widgets % (name, value)} }}")
        assert page.evaluate(RUN) is None
        assert page.evaluate(LOOK)["status"] == f"{judged} judged", (name, value)


@pytest.mark.parametrize("renderer", ["LiteGraph"], indirect=True)
def test_pictures_that_are_gone_are_said_to_be(page: Any, renderer: str, server: ComfyServer) -> None:
    run(page, workflow(seeds=1))
    for pair in page.evaluate(STORED)["pairs"]:
        for name in pair["pictures"].values():
            (server.base_dir / "temp" / name).unlink()
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_function(f"() => window.app?.graph?.nodes?.length && {WIDGET}", timeout=90_000)
    page.wait_for_function(f"() => ({LOOK})().question.includes('are gone')", timeout=20_000)


def test_the_sign_test_and_hostile_data(page: Any) -> None:
    """The p of the page against the binomial sum; and what a workflow of a stranger's may hold."""
    module = "/extensions/lora-conductor/js/vote.js"
    for ours, theirs in [(0, 0), (1, 0), (5, 5), (9, 1), (3, 12), (40, 61)]:
        count, less = ours + theirs, min(ours, theirs)
        expected = min(1.0, 2 * sum(math.comb(count, k) for k in range(less + 1)) / 2**count)
        found = page.evaluate(f"async ([a, b]) => (await import('{module}')).signTest(a, b)", [ours, theirs])
        assert found == pytest.approx(expected, rel=1e-12)
    names = {kind: "lora_conductor_" + "0" * 32 + ".png" for kind in ("ours", "stacked", "subject", "style", "base")}
    good = {"id": "0" * 12, "seed": 1, "pictures": names}
    bad = [None, 7, {}, {**good, "id": "<b>"}, {**good, "pictures": {**names, "ours": "../../secret.png"}}]
    stored = {
        "version": 1,
        "setup": "a" * 12,
        "policy": "<img src=x onerror=alert(1)>",
        "pairs": [*bad, good],
        "rival": "__proto__",
        "votes": {"a" * 12: {"stacked": {"0" * 12: "<b>", "1" * 12: "ours"}, "x": 1}, "__proto__": {"stacked": {}}},
    }
    read = f"async s => {{ const v = (await import('{module}')).Vote.ofStored(s); return v && v.toStored() }}"
    kept = page.evaluate(read, stored)
    assert kept["pairs"] == [good] and kept["rival"] == "stacked"
    assert kept["votes"] == {"a" * 12: {"stacked": {"1" * 12: "ours"}}}
    for nothing in (
        None,
        {},
        {"version": 1},
        {**stored, "pairs": 3},
        {**stored, "setup": None},
        {**stored, "version": 2},
    ):
        assert page.evaluate(read, nothing) in (None, False)
