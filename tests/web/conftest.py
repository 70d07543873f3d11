"""The real page in headless Chromium, in both of its renderers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import screenshots
from comfy_server import ComfyServer


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; tests are skipped only where there is none and none can be installed."""
    try:
        return screenshots.find_chromium()
    except (SystemExit, OSError) as error:
        pytest.skip(f"no Chromium: {error}")


@pytest.fixture(scope="module")
def page(server: ComfyServer, chromium: str) -> Iterator[Any]:
    """The page of the running server."""
    screenshots.prepare_settings(server.base_dir)
    with screenshots.open_page(server) as opened:
        yield opened


@pytest.fixture(params=["LiteGraph", "Nodes 2.0"])
def renderer(request: pytest.FixtureRequest, page: Any) -> Iterator[str]:
    """Both ways in which the page draws nodes."""
    screenshots.use_renderer(page, request.param)
    yield request.param
