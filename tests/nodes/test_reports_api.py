"""Reports in the running ComfyUI: they find their run, and never cost a picture."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_server import ComfyServer
from host_base import make_base

from ..host.workflows import SUBJECT, latent, loader, node, record, router, run, sampled, world


def text(outputs: dict[str, Any], name: str) -> str:
    return outputs[f"{name}.report"]["text"][0]


@pytest.mark.parametrize(
    "graph",
    [
        {"dual": loader(subject="None", style="None")},
        {"dual": loader(subject_strength=0.0, style_strength=0.0)},
        {"dual": router("recommended", "model")},
    ],
    ids=["no LoRAs chosen", "strengths 0", "loader bypassed"],
)
def test_a_model_without_loras_costs_nobody_a_picture(server, graph):
    outputs = run(server, world(**graph, **sampled("a", "dual", report=True, seed=11)))
    assert latent(server, outputs, "a").isfinite().all()
    assert "carries no LoRAs" in text(outputs, "a") and record(outputs, "a")["layers"] == []


def test_a_latent_of_another_model_costs_nobody_a_picture(server):
    graph = world(dual=loader(), **sampled("a", "model", seed=12))
    graph["a.report"] = node("RoutingReport", model=["dual", 0], latent=["a.sample", 0])
    outputs = run(server, graph)
    assert "did not make this latent" in text(outputs, "a") and record(outputs, "a")["layers"] == []


def test_the_latent_may_be_changed_on_its_way(server):
    """Values no longer tell; the node that made it does."""
    graph = world(dual=loader(), **sampled("a", "dual", report=True, seed=13), **sampled("b", "dual", seed=14))
    graph["larger"] = node("LatentUpscaleBy", samples=["a.sample", 0], upscale_method="nearest-exact", scale_by=2.0)
    graph["b.report"] = node("RoutingReport", model=["dual", 0], latent=["larger", 0])
    outputs = run(server, graph)
    assert record(outputs, "b") == record(outputs, "a") and record(outputs, "a")["layers"]


def test_a_report_may_be_added_in_a_later_queue(server):
    """With more runs of the model in between than are kept in full."""
    first = world(dual=loader(), **sampled("a", "dual", seed=15, steps=1))
    run(server, first)
    for seed in range(30, 40):
        run(
            server,
            world(dual=loader(), **sampled("a", "dual", seed=15, steps=1), **sampled("b", "dual", seed=seed, steps=1)),
        )
    outputs = run(server, first | sampled("a", "dual", seed=15, steps=1, report=True))
    assert record(outputs, "a")["layers"] and record(outputs, "a")["loras"][0]["name"] == SUBJECT


def test_every_part_of_a_rebatched_latent_has_its_own_record(server):
    """Ten samplings of one node, one report for each."""
    graph = world(dual=loader(), many=node("EmptySD3LatentImage", width=64, height=64, batch_size=10))
    graph["parts"] = node("RebatchLatents", latents=["many", 0], batch_size=1)
    graph |= sampled("a", "dual", report=True, seed=16, steps=1, latent_image=["parts", 0])
    outputs = run(server, graph)
    found = outputs["a.report"]["routing"]
    assert len(found) == 10 and all(each["layers"] for each in found)
    assert len({str(each["scores"]) for each in found}) == 10


@pytest.fixture(scope="module")
def half_server(host, tmp_path_factory):
    """A server that hands latents on in float16."""
    with ComfyServer(host.path, make_base(tmp_path_factory.mktemp("half")), ["--fp16-intermediates"]) as running:
        yield running


def test_latents_handed_on_in_float16(host, half_server):
    graph = world(
        dual=loader(), **sampled("a", "dual", report=True, seed=17), **sampled("b", "dual", report=True, seed=18)
    )
    outputs = run(half_server, graph)
    assert record(outputs, "a")["layers"] and record(outputs, "a") != record(outputs, "b")


def test_a_latent_that_is_not_a_number_has_a_record_too(server):
    """A burst run is what a user wants to understand."""
    graph = world(dual=loader(style_strength=100.0, subject_strength=-100.0), burst=router("sum"))
    graph |= sampled("a", "dual", report=True, seed=19, cfg=100.0)
    outputs = run(server, graph)
    assert record(outputs, "a")["layers"]
