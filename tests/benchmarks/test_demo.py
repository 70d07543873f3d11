"""The demo's own workflow and pictures, on the running server, with fewer steps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.emoji import demo
from benchmarks.emoji.tables import demo_pictures
from comfy_server import ComfyServer


def test_demo_makes_every_column_and_both_pictures(
    server: ComfyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "STEPS", 5)
    subject, style = demo.PAIRS[0]
    graph = demo.fill_defaults(demo.workflow(subject, style, [1]), server.object_info())
    outputs = server.queue(graph, timeout=240)["outputs"]

    saved = [outputs[f"save/{column}/1"]["images"][0] for column in demo.COLUMNS]
    pictures = [Image.open(io.BytesIO(server.view(file))).convert("RGB") for file in saved]
    assert len({picture.tobytes() for picture in pictures}) == len(demo.COLUMNS), "two columns show the same picture"

    row = {"subject": subject, "style": style, "seed": 1, "references": pictures[:2], "truth": pictures[0]}
    sheet = demo_pictures.comparison([{**row, "pictures": pictures}], demo.COLUMNS)
    assert sheet.width > sheet.height > demo_pictures.CELL

    records = {column: outputs[f"routing/{column}/1"]["routing"][0] for column in ("paper", "recommended")}
    assert all(
        record["steps"] == 5 and len({layer.partition("[")[0] for layer in record["layers"]}) == 36
        for record in records.values()
    )
    demo_pictures.routing_map(records, tmp_path / "map.png", subject)
    assert Image.open(tmp_path / "map.png").width > 500
