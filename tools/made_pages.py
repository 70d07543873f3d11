"""Pages that a command makes, whole or between marks that name it; and how such a command ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class PageError(RuntimeError):
    """A page or its table cannot be made; the message says what is wrong where."""


def marks(command: str) -> tuple[str, str]:
    """The lines between which a command's table stands."""
    return f"<!-- made by `{command}`: do not edit below -->", f"<!-- made by `{command}`: do not edit above -->"


def with_table(page: str, command: str, text: str) -> str:
    """The page with this text between the command's marks.

    Raises:
        PageError: the marks are not there, once each and in order.
    """
    begin, end = marks(command)
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end) or begin in rest or end in before + after:
        raise PageError(f"the page needs the lines\n{begin}\n{end}\nonce, in this order")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def table_of(page: str, command: str) -> str:
    """What stands between the command's marks; nothing where they are not."""
    begin, end = marks(command)
    return page.partition(begin)[2].partition(end)[0]


def put_table(page: Path, command: str, text: str) -> None:
    """Write a command's table into a page, whose other parts may have changed while it measured.

    Raises:
        PageError: as :func:`with_table`.
    """
    page.write_text(with_table(page.read_text(encoding="utf-8"), command, text), encoding="utf-8")


def as_called(command: str, **given: Sequence[str] | None) -> str:
    """The command with the options that it was given, each as often as it has values."""
    options = [(name, f"'{value}'" if " " in value else value) for name, own in given.items() for value in own or ()]
    words = [f"--{name} {value}" for name, value in options]
    return command + (f' ARGS="{" ".join(words)}"' if words else "")


def ended(counted: str, failed: Sequence[str], page: Path) -> int:
    """Tell what failed, how much was measured and where it stands; the command's exit status."""
    for line in failed:
        print(f"FAILED {line}")
    print(f"{counted}, {len(failed)} failed: {page}")
    return 1 if failed else 0
