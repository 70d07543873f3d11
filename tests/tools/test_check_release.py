"""What is asked before a version is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_release import complaints

CHANGES = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n- New.\n\n## [1.1.0] - 2026-11-01\n\n- Old.\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.0"\nrequires-python = ">=3.10"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    return tmp_path


def test_all_three_agree(repository: Path) -> None:
    assert complaints("v1.2.0", repository) == []


@pytest.mark.parametrize(
    ("tag", "changes", "said"),
    [
        ("v1.1.0", CHANGES, ["the version in pyproject.toml 1.2.0"]),
        ("1.2.0", CHANGES, ["tag v1.2.0"]),
        ("v1.3.0", CHANGES, ["the version in pyproject.toml 1.2.0", "has no section `## [1.3.0] - YYYY-MM-DD`"]),
        ("v1.2.0", CHANGES.replace("[1.2.0] - 2026-12-01", "[1.2.0]"), ["has no section"]),
        ("v1.2.0", CHANGES.replace("1.2.0", "1x2x0"), ["has no section"]),
        ("v1.2.0", CHANGES.replace("- New.", ""), ["says nothing about v1.2.0"]),
    ],
)
def test_what_is_in_the_way_is_said(repository: Path, tag: str, changes: str, said: list[str]) -> None:
    (repository / "CHANGELOG.md").write_text(changes)
    found = complaints(tag, repository)
    assert len(found) == len(said) and all(part in complaint for part, complaint in zip(said, found, strict=True))
