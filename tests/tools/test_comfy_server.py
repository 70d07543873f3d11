"""The server helper against the real ComfyUI."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Any

import pytest

import comfy_server
from comfy_server import ComfyServer, ServerError, WorkflowError
from host_base import make_base


def empty_picture(color: int = 255) -> dict[str, Any]:
    size = {"width": 64, "height": 64, "batch_size": 1}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {**size, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test"}},
    }


def test_runs_a_workflow_and_returns_its_files(server: ComfyServer) -> None:
    events: list[str] = []
    entry = server.queue(empty_picture(), timeout=60, on_event=lambda kind, _: events.append(kind))
    (picture,) = entry["outputs"]["2"]["images"]
    assert server.view(picture).startswith(b"\x89PNG")
    assert (server.base_dir / "output" / picture["filename"]).is_file()
    assert "executed" in events


def test_refused_workflow_names_the_input(server: ComfyServer) -> None:
    workflow = empty_picture()
    workflow["1"]["inputs"]["width"] = -5
    with pytest.raises(WorkflowError, match=r"EmptyImage \(node 1\): .*width"):
        server.queue(workflow)


def test_failing_node_is_named(server: ComfyServer) -> None:
    workflow = empty_picture()
    workflow["0"] = {"class_type": "LoadImageMask", "inputs": {"image": "broken.png", "channel": "red"}}
    workflow["1"] = {"class_type": "MaskToImage", "inputs": {"mask": ["0", 0]}}
    (server.base_dir / "input" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(WorkflowError, match=r"LoadImageMask \(node 0\): .*Error"):
        server.queue(workflow)


def test_interrupt_ends_a_run(server: ComfyServer) -> None:
    # The host looks for an interruption between nodes: hundreds of them are left when the first one is announced.
    workflow = empty_picture(color=1)
    for node in range(3, 403):
        workflow[str(node)] = {"class_type": "ImageInvert", "inputs": {"image": [str(node - 1 if node > 3 else 1), 0]}}
        workflow[f"save {node}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [str(node), 0], "filename_prefix": "interrupted"},
        }
    announced: list[str] = []

    def stop_at_the_first_node(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node") and not announced:
            announced.append(data["node"])
            server.interrupt()

    with pytest.raises(WorkflowError, match="interrupted"):
        server.queue(workflow, timeout=120, on_event=stop_at_the_first_node)
    assert len(list((server.base_dir / "output").glob("interrupted*"))) < 400


def test_everything_written_lies_under_the_base_directory(server: ComfyServer) -> None:
    assert not (server.host_dir / "user").exists()
    assert list((server.base_dir / "user").glob("comfyui-*.db"))


def test_failed_start_shows_the_log(tmp_path: Path, host: Any) -> None:
    broken = ComfyServer(host.path, make_base(tmp_path / "base"), extra_args=["--no-such-argument"])
    with pytest.raises(ServerError, match="exited with code 2(?s:.)*unrecognized arguments: --no-such-argument"):
        broken.start()


def test_a_port_that_another_took_is_left_to_it(tmp_path: Path, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody answers there as ComfyUI would, before ours is up."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        free, taken = comfy_server._free_port(), other.server_address[1]
        ports = iter([taken, free])
        monkeypatch.setattr(comfy_server, "_free_port", lambda: next(ports))
        with ComfyServer(host.path, make_base(tmp_path)) as server:
            assert server.port == free
            assert "KSampler" in server.get("/object_info/KSampler")
        other.shutdown()
