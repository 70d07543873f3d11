"""The soak on two real servers, a few prompts each; and that its verdict sees what it is for."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from pathlib import Path

import pytest

import soak
from bootstrap_host import find_host


def figures(resident: list[float], threads: list[int]) -> soak.Figures:
    return soak.Figures(resident, [None] * len(resident), threads, [9] * len(resident))


# Of each cause of trouble one: a file, the memory, the stop button, a plan, the disk where files can be limited.
SHORT = ["any_picture", "interrupted", "lora_deleted", "lora_truncated", "out_of_memory", "plan_of_others"]
SHORT += ["full_disk"] if "full_disk" in soak.KINDS else []


def test_two_servers_a_few_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    report = tmp_path / "soak.json"
    only = [part for kind in SHORT for part in ("--only", kind)]
    monkeypatch.setattr(sys, "argv", ["soak.py", "--prompts", str(len(SHORT)), "--output", str(report), *only])
    assert soak.main() == 0, capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["complaints"] == [] and len(found["servers"]) == 2
    for server in found["servers"]:
        assert len(server["resident"]) == len(server["threads"]) == len(server["handles"]) == len(SHORT)
        assert len(server["allocated"]) == len(SHORT)
        if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
            assert all(
                50 < held < resident for held, resident in zip(server["allocated"], server["resident"], strict=True)
            )
        assert min(server["resident"]) > 50 and min(server["threads"]) > 0 and min(server["handles"]) > 0
        ends = {end for end in server["ends"] if not end.startswith("any_picture")}
        assert ends == {
            "interrupted: interrupted",
            "out_of_memory: out of memory",
            *(
                f"{kind}: refused by name"
                for kind in SHORT
                if kind not in ("any_picture", "interrupted", "out_of_memory")
            ),
        }


def test_a_poisoned_reference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = iter(range(100))
    plain = soak.workflows.sampled
    monkeypatch.setattr(soak.workflows, "sampled", lambda *a, **k: plain(*a, **k | {"seed": next(seeds)}))
    (found,) = soak.soak(find_host(), 1, 1, 0, ("all_unloaded",))
    assert found.poisoned == ["prompt 1 (all_unloaded)"] and found.complaints()


def test_growth_is_seen() -> None:
    steady = figures([800.0 + n % 3 for n in range(80)], [5] * 80)
    assert steady.complaints() == []
    leaking = figures([800.0 + 0.2 * n for n in range(80)], [5] * 80)
    assert leaking.complaints() == ["memory grows by 0.20 MB a prompt"]
    # What an allocator keeps for later is none, what is not freed is.
    kept = dataclasses.replace(leaking, allocated=[400.0] * 80)
    assert kept.complaints() == []
    held = dataclasses.replace(steady, allocated=[400.0 + 0.2 * n for n in range(80)])
    assert held.complaints() == ["memory grows by 0.20 MB a prompt"]
    forking = figures([800.0] * 80, [5 + n // 10 for n in range(80)])
    assert forking.complaints() == ["2 more threads in the last quarter than in the one before"]
    assert leaking.slope == pytest.approx(0.2)


def test_warming_up_is_no_growth() -> None:
    assert figures([500.0 + 9 * n for n in range(20)], [5] * 20).complaints() == []
    warming = [min(800.0, 500.0 + 10 * n) for n in range(80)]
    assert figures(warming, [5] * 80).complaints() == []


def test_a_misspelt_kind_is_named(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", "--only", "fulldisk"])
    with pytest.raises(SystemExit):
        soak.main()
    assert "full_disk" in capsys.readouterr().err
