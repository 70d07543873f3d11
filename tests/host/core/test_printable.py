"""Text from outside, shown: escaped where no log and no file could hold it, and otherwise as it was."""

import io
import json
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_conductor.host.core.errors import ConductorError
from lora_conductor.host.core.printable import MOST_OF_A_MESSAGE, printable

ANY = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=50)


@given(
    st.recursive(
        ANY | st.integers() | st.floats() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)
    )
)
def test_whatever_it_was_it_can_be_sent_and_saved(value):
    text = json.dumps(printable(value), ensure_ascii=False, allow_nan=False)
    assert json.loads(text.encode("utf-8")) == printable(value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\ud800", "\\ud800"),
        ("caf\udce9.safetensors", "caf\\udce9.safetensors"),
        ("a\x1b[2Jb\rc\x00", "a\\x1b[2Jb\\rc\\x00"),
        ("exe.\u202egnp", "exe.\\u202egnp"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, shown):
    assert printable(text) == shown == str(ConductorError(text))


@pytest.mark.parametrize(
    "text", ["Stil \u00e4\u00f6.safetensors", "\u732b\u3000\U0001f468\u200d\U0001f3a8", "two\n\tlines"]
)
def test_what_can_be_printed_is_left_as_it_is(text):
    assert printable(text) is text and str(ConductorError(text)) == text


def test_a_message_is_bounded_and_keeps_both_ends():
    text = str(ConductorError(f"file: {'x' * 10**6} is wrong. Pick another."))
    assert len(text) < MOST_OF_A_MESSAGE + 50 and text.startswith("file: x") and text.endswith("Pick another.")


def test_the_error_it_was_raised_from_is_printable_as_well():
    with pytest.raises(ConductorError) as caught:
        try:
            raise ValueError("deep \ud800")
        except ValueError as error:
            raise ConductorError(f"file: {error}") from error
    assert "deep \\ud800" in "".join(traceback.format_exception(caught.value)).encode().decode()


def test_it_fits_a_log_that_knows_few_characters(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert str(ConductorError("\u732b \u00e4")) == "\\u732b \u00e4"
