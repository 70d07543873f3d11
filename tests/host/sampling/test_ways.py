"""The tables of ways to sample: nothing of core's is missing, a part of the cells, and that a cell can fail."""

from __future__ import annotations

import comfy.samplers
import pytest

from lora_conductor.fusion.policies import Sum
from lora_conductor.host.fusing import fused

from .catalogue import WAYS
from .flags import FlagCell, rows
from .patches import ELSEWHERE, MERGES, NODES
from .table import table
from .ways import Cell, World, core_nodes, inputs_of, measure

QUICK = [
    ("dpmpp_2m_sde", "a step a call"),
    ("uni_pc", "two stages"),
    ("euler_ancestral", "inpainting"),
    ("heun", "latent list"),
    ("DualCFGGuider, nested", "one run"),
    ("LoRA hook with keyframes", "one run"),
    ("ControlNet", "one run"),
    ("FreeU", "after"),
    ("SelfAttentionGuidance", "before"),
    ("LazyCache, Flux", "after"),
    ("UNetCrossAttentionMultiply", "before"),
    ("video and audio, nested", "3 steps, CFG 2"),
    ("a forward put on for a call (TeaCache)", "after"),
    ("more prompts inside attention (ppm)", "after"),
    ("another class in place (RES4LYF)", "before"),
    ("two models in turn under masks (Impact, Inspire)", "one run"),
]
BY_PLACE = {(way.row, way.column): way for way in WAYS}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("ways"), {}

    def world(family):
        if family not in made:
            made[family] = World(family, folder)
        return made[family]

    return world


@pytest.mark.parametrize("place", QUICK, ids=" ".join)
def test_live_sum_is_cores_merge(place, worlds, record_property):
    way = BY_PLACE[place]
    cell = measure(way, worlds(way.family))
    record_property("of the range", cell.error)
    assert cell.passed and not cell.core_refuses, cell


@pytest.mark.parametrize("place", [("ddim", "one run"), ("APG", "after")], ids=" ".join)
def test_a_wrong_strength_fails_its_cell(place, worlds):
    class Louder(World):
        def ours(self, model):
            return fused(model, *[(path, strength * 1.01) for path, strength in self.files], Sum(), always_live=True)

    way, world = BY_PLACE[place], worlds("SD15")
    louder = Louder("SD15", world.files[0][0].parent)
    louder.models = world.models
    assert not measure(way, louder).passed


def test_every_node_that_makes_a_model_of_a_model_is_here_or_named():
    known = {kind for kinds in NODES.values() for kind in kinds} | set(ELSEWHERE)
    found = {
        kind
        for kind, node in core_nodes().items()
        if "MODEL" in (node.RETURN_TYPES or ()) and any(spec[0] == "MODEL" for spec in inputs_of(kind).values())
    }
    assert not {kind for kind in found - known if not kind.startswith(MERGES)}, "the host has got new nodes"
    assert not set(ELSEWHERE) & {kind for kinds in NODES.values() for kind in kinds}


def test_every_sampler_and_guider_is_here():
    rows_of = {
        section: {way.row.split(",")[0] for way in WAYS if way.section == section}
        for section in ("Samplers", "Guiders")
    }
    assert rows_of["Samplers"] == set(comfy.samplers.SAMPLER_NAMES)
    assert rows_of["Guiders"] == {kind for kind, node in core_nodes().items() if "GUIDER" in (node.RETURN_TYPES or ())}


def test_the_tables_tell_what_failed_and_why():
    way = BY_PLACE["euler", "one run"]
    differing = BY_PLACE["a LoRA layer's forward, object patch", "after"]
    cells = [
        Cell(way, 1e-7, 0.3),
        Cell(BY_PLACE["euler", "img2img"], 1e-2, 0.3),
        Cell(BY_PLACE["euler", "inpainting"], 0.0, 0.0),
        Cell(BY_PLACE["euler", "two stages"], failure="ValueError: so"),
        Cell(BY_PLACE["heun", "one run"], core_refuses="TypeError: core's own"),
        Cell(differing, 1e-2, 0.3),
    ]
    text = table(cells, list(rows([FlagCell(("--cpu",), 1e-7), FlagCell(("--lowvram",), said="no card")])))
    assert "6 cells: 3 failed, 1 differ for a named reason, 1 are refused" in text
    for part in ("| 1e-07 |", "**FAILED 1e-02**", "**FAILED 0e+00**", "**FAILED**", "ValueError: so", "refused"):
        assert part in text
    assert differing.differs in text and "| `--lowvram` | does not start |" in text and "- --lowvram: no card" in text
