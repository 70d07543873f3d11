"""What tests of the small worlds share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def student_world(tmp_path: Path) -> Path:
    """A folder with a distilled model that has learned nothing yet: it draws what the base draws without guidance."""
    from benchmarks.emoji.world import base, distilled, files
    from benchmarks.emoji.world.small_world import SmallWorld

    network = distilled.student(SmallWorld().model.model.diffusion_model)
    base.save_model(network.state_dict(), tmp_path / files.DISTILLED)
    return tmp_path
