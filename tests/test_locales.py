"""Translations of node texts: complete, nothing left over, and English as the schemas have it."""

from __future__ import annotations

import json
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


def test_server_hands_them_out(server: ComfyServer) -> None:
    handed_out = server.get("/i18n")
    for language in LANGUAGES:
        own = texts(language)
        assert {name: handed_out[language]["nodeDefs"][name] for name in own} == own
