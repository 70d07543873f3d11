"""The in-process host really is the host, and the pack really is this repository; draws are each test's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hypothesis
import numpy
import pytest
import torch
from hypothesis import strategies as st

from draws import draws_of, seed_draws, seed_of


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


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(numpy.random.rand()), random.random()


@pytest.fixture(scope="module")
def shared() -> tuple[float, float, float]:
    return draw()


@pytest.mark.parametrize("number", range(2))
def test_draws_are_the_tests_own_whatever_was_drawn_before(request: pytest.FixtureRequest, number: int) -> None:
    own = draw()
    seed_draws("another test")
    assert all(a != b for a, b in zip(draw(), own, strict=True))
    seed_draws(request.node.nodeid)
    assert draw() == own


def test_a_shared_fixture_draws_the_same_for_whoever_asks_first(
    request: pytest.FixtureRequest, shared: tuple[float, float, float]
) -> None:
    own = draw()
    seed_draws(request.node.nodeid)
    with draws_of(f"{request.node.parent.nodeid}::shared[0]"):
        assert draw() == shared
    assert draw() == own, "what a fixture draws must not move the test's draws"


def test_seeds_are_the_same_in_every_process() -> None:
    assert seed_of("tests/test_x.py::test_y") == 901055501


def test_an_example_draws_the_same_each_time_it_is_tried() -> None:
    drawn = []

    @hypothesis.settings(max_examples=5, database=None)
    @hypothesis.given(st.integers())
    def example(number: int) -> None:
        drawn.append(draw())

    before = torch.get_rng_state()
    example()
    assert len(drawn) == 5 and len(set(drawn)) == 1
    assert torch.equal(torch.get_rng_state(), before)
