"""The table of libraries: how a file's library is found, and what one more row is enough for."""

import sys
import types

import pytest
import torch

from lora_conductor.guidance.encoders import LIBRARIES, EncoderFileError, Library, TextTower, build_from_file
from lora_conductor.guidance.encoders import build_text_from_file as build_text
from lora_conductor.guidance.encoders.base import Tower
from lora_conductor.guidance.preprocess import Preprocess

NOTHING = torch.zeros(1)
CLIP, TIMM, CSD = ({key: NOTHING} for key in ("visual.conv1", "patch_embed.proj", "module.last_layer_style"))


def recognising(weights, config=None):
    return [name for name, library in LIBRARIES.items() if library.recognises(weights, config)]


@pytest.mark.parametrize(
    ("weights", "config", "library"),
    [
        (CLIP, None, "open_clip"),
        (TIMM, None, "timm"),
        (CSD, None, "csd"),
        ({}, {"model_type": "clip"}, "transformers"),
        (CLIP | TIMM, None, "open_clip"),
        (CLIP | TIMM, {"model_type": "clip"}, "transformers"),
        (CLIP | TIMM | CSD, {"model_type": "clip"}, "csd"),
    ],
)
def test_a_file_belongs_to_the_surest(weights, config, library, monkeypatch):
    built = []
    for name in LIBRARIES:
        row = Library(**{**vars(LIBRARIES[name]), "build": lambda file, name=name: built.append(name) or tower()})
        monkeypatch.setitem(LIBRARIES, name, row)
    build_from_file(weights, None, config=config)
    assert built == [library] and library in recognising(weights, config)


def tower():
    return Tower(torch.nn.Flatten(), Preprocess((8, 8)))


def test_one_more_row_is_enough(monkeypatch):
    text = TextTower(lambda tokens: tokens.float(), lambda prompt: torch.ones(1, 3))
    row = Library(
        "new",
        "new_module",
        "new-package",
        lambda weights, config: "new.weight" in weights,
        lambda file: tower(),
        build_text=lambda file, folders: text,
        text_prefixes=("words.",),
        beside="new.json",
    )
    monkeypatch.setitem(LIBRARIES, "new", row)
    weights = {"new.weight": NOTHING, "words.weight": NOTHING}
    for build in (build_from_file, build_text):
        with pytest.raises(ImportError, match="^a file needs the Python package new-package.*pip install new-package"):
            build(weights, None, file_name="a file")
    monkeypatch.setitem(sys.modules, "new_module", types.ModuleType("new_module"))
    encoder = build_from_file(weights, None)
    assert encoder.reads_text and build_text(weights, None) is text
    assert not build_from_file({"new.weight": NOTHING}, None).reads_text
    with pytest.raises(EncoderFileError, match="only csd has a content head"):
        build_from_file(weights, None, features="content head")
    with pytest.raises(EncoderFileError, match="Set library to one of .*, csd, new;.* a new model needs new.json"):
        build_from_file({}, None)
