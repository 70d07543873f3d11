"""Every template through the running ComfyUI, on small random models of its family; the small world's on its own."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_server import ComfyServer
from host_base import make_base
from repo_paths import link

from ..host.workflows import STYLE, SUBJECT
from .graphs import OF_USERS, OF_WORLD, Graph, nodes_of, read, small, to_api
from .tiny_families import write_pair


@pytest.fixture(scope="module")
def comfy(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with small models of every family, LoRAs for them, and core's example picture."""
    base = make_base(tmp_path_factory.mktemp("templates"))
    link(Path(__file__).with_name("tiny_nodes"), base / "custom_nodes" / "tiny_nodes")
    for family in ("SDXL", "ZImage", "Flux2"):
        write_pair(base / "models" / "loras", family)
    shutil.copy2(host.path / "input" / "example.png", base / "input" / "example.png")
    with ComfyServer(host.path, base) as running:
        assert "TinyCheckpoint" in running.object_info(), running.log
        yield running


@pytest.fixture(scope="module")
def definitions(comfy: ComfyServer) -> dict[str, Any]:
    return comfy.object_info()


def pair_of(graph: Graph) -> tuple[str, str]:
    families = [node["inputs"]["family"] for node in graph.values() if "family" in node["inputs"]]
    return (f"subject_{families[0]}.safetensors", f"style_{families[0]}.safetensors") if families else (SUBJECT, STYLE)


def with_loras(graph: Graph, style_strength: float) -> Graph:
    (loader,) = nodes_of(graph, "DualLoRADynamicLoader")
    subject, style = pair_of(graph)
    graph[loader]["inputs"] |= {"subject_lora": subject, "style_lora": style, "style_strength": style_strength}
    return graph


def pixels(server: ComfyServer, image: dict[str, str]) -> bytes:
    return Image.open(io.BytesIO(server.view(image))).tobytes()


def pictures(server: ComfyServer, graph: Graph, outputs: dict[str, Any], kind: str) -> list[bytes]:
    return [pixels(server, image) for number in nodes_of(graph, kind) for image in outputs[number].get("images", ())]


def compared(server: ComfyServer, graph: Graph, outputs: dict[str, Any]) -> tuple[bytes, bytes]:
    """What core's node holds side by side: the plain stack, and the fused picture."""
    (number,) = nodes_of(graph, "ImageCompare")
    (plain,), (fused,) = outputs[number]["a_images"], outputs[number]["b_images"]
    return pixels(server, plain), pixels(server, fused)


@pytest.mark.parametrize("path", OF_USERS, ids=lambda path: path.stem)
def test_draws_with_two_loras(comfy: ComfyServer, definitions: dict[str, Any], path: Path) -> None:
    # A strength of its own: what the server remembers of another template says nothing.
    graph = with_loras(small(to_api(read(path), definitions)), 1 + int(path.stem[:2]) / 100)
    outputs = comfy.queue(graph, timeout=200)["outputs"]
    (loader,) = nodes_of(graph, "DualLoRADynamicLoader")
    (said,) = outputs[loader]["text"]
    headline = re.match(r"(\d+) layers routed, 0 keys left out", said)
    assert headline and int(headline[1]) > 0, said
    if "illustrious" in path.stem:
        assert "1 text-encoder weights at strength 1" in said
    assert pictures(comfy, graph, outputs, "SaveImage")
    if not nodes_of(graph, "ImageCompare"):
        return  # the grid has the plain stack in a row of its own
    plain, fused = compared(comfy, graph, outputs)
    assert plain != fused
    assert plain in pictures(comfy, graph, outputs, "PreviewImage"), "where the page cannot compare, it shows both"
    if "plan" in path.stem:
        replayed, measured = pictures(comfy, graph, outputs, "SaveImage")
        assert replayed == measured


@pytest.mark.parametrize("path", [p for p in OF_USERS if int(p.stem[:2]) <= 5], ids=lambda path: path.stem)
def test_without_loras_both_pictures_are_the_model_s(
    comfy: ComfyServer, definitions: dict[str, Any], path: Path
) -> None:
    """The two branches differ in nothing but how LoRAs are combined: seed, steps, prompts and sampler are the same."""
    graph = small(to_api(read(path), definitions))
    outputs = comfy.queue(graph, timeout=200)["outputs"]
    plain, fused = compared(comfy, graph, outputs)
    assert plain == fused


@pytest.mark.parametrize("path", OF_WORLD, ids=lambda path: path.stem)
def test_the_small_world_s_run_to_the_end(comfy: ComfyServer, definitions: dict[str, Any], path: Path) -> None:
    graph = to_api(read(path), definitions)
    outputs = comfy.queue(graph, timeout=300)["outputs"]
    drawn = pictures(comfy, graph, outputs, "SaveImage") + pictures(comfy, graph, outputs, "PreviewImage")
    # A replayed plan gives the same picture bit for bit; all others are pictures of their own.
    expected = {"save_and_replay_a_plan": 1}.get(path.stem, len(drawn))
    assert drawn and len(set(drawn)) == expected
