"""The in-process host really is the host, and the pack really is this repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_modules_come_from_where_they_should(host: Any, models_dir: Path) -> None:
    import folder_paths
    import nodes

    import lora_conductor.fusion

    assert Path(nodes.__file__) == host.path / "nodes.py"
    assert Path(folder_paths.models_dir) == models_dir
    repository = Path(__file__).resolve().parents[2]
    assert Path(lora_conductor.fusion.__path__[0]).resolve() == repository / "fusion"


def test_runs_on_the_cpu() -> None:
    import comfy.model_management

    assert comfy.model_management.get_torch_device().type == "cpu"
