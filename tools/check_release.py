"""Whether a tag, pyproject.toml and CHANGELOG.md name one version: asked before anything is published.

check_release.py v1.2.3
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from repo_paths import REPO


def complaints(tag: str, root: Path = REPO) -> list[str]:
    """What is in the way of publishing this tag; nothing if it can go."""
    found = []
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "([^"]+)"$', project, re.MULTILINE)
    named = version.group(1) if version else "none"
    if tag != f"v{named}":
        found.append(f"the tag is {tag}, the version in pyproject.toml {named}: set it, or tag v{named}")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^## \[{re.escape(tag.removeprefix('v'))}\] - \d{{4}}-\d\d-\d\d$(.*?)(?=^## |\Z)", changes, re.M | re.S
    )
    if section is None:
        found.append(f"CHANGELOG.md has no section `## [{tag.removeprefix('v')}] - YYYY-MM-DD`")
    elif not section.group(1).strip():
        found.append(f"CHANGELOG.md says nothing about {tag}")
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if found := complaints(sys.argv[1]):
        sys.exit("\n".join(f"error: {complaint}" for complaint in found))


if __name__ == "__main__":
    main()
