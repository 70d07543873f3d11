"""Baked files in other programs: one dialect a file, every key of it used by ComfyUI and by diffusers, no warning."""

import pytest
from safetensors.torch import load_file

from ..families.catalogue import FAMILIES
from .dialects import Parents
from .diffusers_models import DIFFUSERS
from .loaders import read_by_diffusers


@pytest.mark.parametrize("name", DIFFUSERS)
def test_every_key_of_a_file_is_used(name, tmp_path, record_property):
    if not FAMILIES[name].in_host:
        pytest.skip(f"this ComfyUI has no {name}")
    rows = list(Parents(name, tmp_path).rows())
    record_property("files", len(rows))
    assert rows and all(row.passed for row in rows), [row for row in rows if not row.passed]


def test_two_dialects_in_a_file_would_be_seen(tmp_path):
    """The reason for one dialect a file: of two, diffusers drops one without a word."""
    parents = Parents("SDXL", tmp_path)
    mixed = load_file(parents.file("kohya", 1))
    mixed = {key: value for key, value in mixed.items() if "input_blocks" in key}
    second = load_file(parents.file("kohya, diffusers' names", 2))
    mixed |= {key: value for key, value in second.items() if "up_blocks" in key}
    reading = read_by_diffusers("SDXL", mixed)
    assert not reading.said
    assert set(reading.unused) == {key for key in mixed if "input_blocks" in key}
