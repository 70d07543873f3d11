"""Translations of node texts and of the panels' words: complete, nothing left over, and English as the code has it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from comfy_server import ComfyServer
from repo_paths import REPO

LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es")
# Their choices are the user's files, or core's samplers.
UNTRANSLATED = {"subject_lora", "style_lora", "encoder_name", "file", "sampler_name", "scheduler"}


def texts(language: str) -> dict[str, Any]:
    return json.loads((REPO / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def english(server: ComfyServer) -> dict[str, Any]:
    """What the English file should be, from the definitions the page gets."""
    expected = {}
    for name, info in server.object_info().items():
        if info["python_module"] != "custom_nodes.lora-conductor":
            continue
        inputs: dict[str, Any] = {}
        for section in ("required", "optional"):
            for key, (_, options) in info["input"].get(section, {}).items():
                inputs[key] = {"name": key, "tooltip": options["tooltip"]}
                if isinstance(options.get("options"), list) and key not in UNTRANSLATED:
                    inputs[key]["options"] = {choice: choice for choice in options["options"]}
        outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
        expected[name] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": inputs,
            "outputs": {str(i): {"name": label, "tooltip": tooltip} for i, (label, tooltip) in enumerate(outputs)},
        }
    assert expected
    return expected


def paths(tree: Any, at: str = "") -> dict[str, Any]:
    """Every text by its place, "KLLayerRouter/inputs/policy/tooltip"."""
    if not isinstance(tree, dict):
        return {at: tree}
    return {path: text for key, value in tree.items() for path, text in paths(value, f"{at}/{key}".strip("/")).items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_and_no_other(english: dict[str, Any], language: str) -> None:
    own = texts(language)
    assert sorted(set(english) - set(own)) == [], "nodes without a translation"
    assert sorted(set(own) - set(english)) == [], "translations of nodes that do not exist"
    expected, found = paths(english), paths(own)
    assert sorted(set(expected) - set(found)) == [], "missing"
    assert sorted(set(found) - set(expected)) == [], "surplus"
    assert [path for path, text in found.items() if not text.strip()] == []
    # The page reads these as marks of its message format.
    assert [path for path, text in found.items() if set(text) & set("{}@|")] == []


def test_english_is_the_schemas(english: dict[str, Any]) -> None:
    expected, found = paths(english), paths(texts("en"))
    assert {path: found.get(path) for path in expected} == expected


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_are_in_their_own_words(english: dict[str, Any], language: str) -> None:
    expected, found = paths(english), paths(texts(language))
    same = [
        path for path, text in found.items() if path.endswith(("tooltip", "description")) and text == expected[path]
    ]
    assert same == []


def panel_words(language: str) -> dict[str, str]:
    """By the English text that stands in the code of the page."""
    main = json.loads((REPO / "locales" / language / "main.json").read_text(encoding="utf-8"))
    return main["loraConductor"]["panels"]


@pytest.fixture(scope="module")
def spoken() -> set[str]:
    """What the panels say in English, and the roles, whose names come with the events."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (REPO / "web").rglob("*.js"))
    found = re.findall(r'inWords\("((?:[^"\\]|\\.)*)"', code)
    assert len(found) > 20
    return {json.loads(f'"{text}"') for text in found} | {"subject", "style", "prompt"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_panels_speak_every_language(spoken: set[str], language: str) -> None:
    words = panel_words(language)
    assert set(words) == spoken
    gaps = re.compile(r"\{\w+\}")
    for english, text in words.items():
        assert text.strip() and sorted(gaps.findall(text)) == sorted(gaps.findall(english)), english
        sentence = " " in gaps.sub("", english).strip()
        assert not sentence or (text == english) is (language == "en"), english


def test_server_hands_them_out(server: ComfyServer) -> None:
    handed_out = server.get("/i18n")
    for language in LANGUAGES:
        own = texts(language)
        assert {name: handed_out[language]["nodeDefs"][name] for name in own} == own
        assert handed_out[language]["loraConductor"]["panels"] == panel_words(language)
