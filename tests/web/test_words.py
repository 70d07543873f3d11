"""The panels' own words: in the language that the page is set to, English where there is no other.

German is among ours, but the page cannot be set to it: it has only those it brings itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from repo_paths import REPO

from .test_guidance_curves import a_seed, queue, workflow
from .test_routing_map import load

PLACES = [[10, "routing_map"], [11, "guidance_curves"], [12, "report_text"]]
SAID = """([id, name]) => {
    const { element } = window.app.graph.getNodeById(id).widgets.find(w => w.name === name)
    return [...element.children].filter(part => part.localName !== 'style').map(part => part.textContent).join(' ') }"""
SET_LANGUAGE = "language => window.app.extensionManager.setting.set('Comfy.Locale', language)"
TITLES = ("Routing map", "Guidance", "Report")


@pytest.fixture(scope="module")
def after_a_run(page: Any) -> Iterator[Any]:
    """The page with its panels filled."""
    load(page, workflow(a_seed(), steps=4), "words")
    queue(page)
    yield page
    page.evaluate(SET_LANGUAGE, "en")
    page.wait_for_timeout(2000)


def said(page: Any, language: str) -> list[str]:
    """What the panels say once the page speaks the language."""
    page.evaluate(SET_LANGUAGE, language)
    page.wait_for_timeout(3000)  # it makes all nodes anew
    return [page.evaluate(SAID, place) for place in PLACES]


@pytest.mark.parametrize("language", ["fr", "ja", "zh"])
def test_panels_speak_the_page_s_language(after_a_run: Any, renderer: str, language: str) -> None:
    words = json.loads((REPO / "locales" / language / "main.json").read_text(encoding="utf-8"))
    words = words["loraConductor"]["panels"]
    panels = said(after_a_run, language)
    for text, title in zip(panels, TITLES, strict=True):
        assert words[title] in text and title not in text
    routing, curves, _ = panels
    for english in ("subject", "style", "Point at the map: layer, weights, scores. \u25be folds a block."):
        assert words[english] in routing
    assert re.search(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(words["{guided} of {steps} steps guided"])), curves)
    assert words["Similarities; below, how far each step moved the picture."] in curves


def test_english_where_there_is_no_other(after_a_run: Any, renderer: str) -> None:
    for language in ("en", "ru"):
        for text, title in zip(said(after_a_run, language), TITLES, strict=True):
            assert title in text
