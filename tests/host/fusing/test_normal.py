"""What a report calls usual for a policy is what was measured."""

from __future__ import annotations

import re

from lora_conductor.fusion.routing import NAMED
from lora_conductor.host.fusing.normal import USUAL, usual
from repo_paths import REPO


def test_it_is_the_page_s() -> None:
    page = (REPO / "docs" / "benchmarks" / "shares.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [.\d]+ \| ([.\d]+) to ([.\d]+) \|", page, re.M)
    measured = {name: (float(low), float(high)) for name, low, high in rows}
    assert {name: measured[name] for name in USUAL} == USUAL
    assert set(USUAL) <= set(NAMED)


def test_in_words() -> None:
    assert usual("paper") == " (usual for paper: 63% to 84%)"
    assert usual("recommended") == " (usual for recommended: 34%)"
    assert usual("a plan") == ""
