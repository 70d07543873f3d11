"""The bake node in the running ComfyUI: bake, load the file with the stock loader, the same latent."""

import json

import pytest
import torch
from safetensors import safe_open

from comfy_server import WorkflowError

from ..host import tiny
from ..host.workflows import SUBJECT, latent, loader, node, router, run, sampled, stock, world


def bake(model="dual", sample="live", **inputs):
    inputs = {"steps": "average", "step": 1, "rank": 0, "dtype": "fp16", "filename_prefix": "loras/api"} | inputs
    if sample is not None:
        inputs["latent"] = [f"{sample}.sample", 0]
    return node("BakeFusedLoRA", model=[model, 0], **inputs)


def test_a_baked_step_loaded_by_the_stock_loader_is_the_live_step(server, record_property):
    graph = world(
        dual=loader(),
        plain=router("sum"),
        exact=bake(steps="one step", dtype="fp32"),
        half=bake(steps="one step"),
        name=node("PreviewAny", source=["exact", 0]),
        half_name=node("PreviewAny", source=["half", 0]),
        **sampled("live", "dual", steps=1, cfg=1.0),
        **sampled("stacked", "plain", steps=1, cfg=1.0),
    )
    outputs = run(server, graph)
    names = {kind: outputs[key]["text"][0] for kind, key in (("exact", "name"), ("half", "half_name"))}
    # Core's own convention: the list of LoRAs holds what saving nodes wrote.
    listed = server.get("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert set(names.values()) <= set(listed[0] if isinstance(listed[0], list) else listed[1]["options"])
    assert names["exact"] in outputs["exact"]["text"][0] and "energy kept: 100.000%" in outputs["exact"]["text"][0]
    second = world()
    for kind, name in names.items():
        second |= {kind: stock("model", name), **sampled(f"{kind} baked", kind, steps=1, cfg=1.0)}
    baked = run(server, second)
    live = latent(server, outputs, "live")
    errors = {kind: tiny.relative(latent(server, baked, f"{kind} baked"), live) for kind in names}
    assert tiny.relative(latent(server, outputs, "stacked"), live) > 1e-2
    for kind, error in errors.items():
        record_property(f"{kind} file by the stock loader", error)
    assert errors["exact"] < 1e-5 and errors["half"] < 1e-3


def test_the_file_tells_its_workflow_and_the_loader_takes_it_again(server):
    graph = world(
        dual=loader(), baked=bake(rank=2), name=node("PreviewAny", source=["baked", 0]), **sampled("live", "dual")
    )
    outputs = run(server, graph)
    name = outputs["name"]["text"][0]
    with safe_open(server.base_dir / "output" / "loras" / name, "pt") as file:
        metadata = file.metadata()
    own = json.loads(metadata["lora_conductor"])
    assert (own["step"], own["steps"], own["rank"]) == (None, 3, 2) and own["parents"][0]["name"] == SUBJECT
    assert json.loads(metadata["prompt"])["baked"]["class_type"] == "BakeFusedLoRA"
    again = world(dual=loader(subject=name, style="None"), **sampled("again", "dual"))
    assert torch.isfinite(latent(server, run(server, again), "again")).all()


def test_progress_is_shown(server):
    seen = []
    graph = world(dual=loader(), **sampled("live", "dual", seed=77), baked=bake())
    server.queue(graph, timeout=300, on_event=lambda kind, data: seen.append((kind, data)))
    progress = [data for kind, data in seen if kind == "progress" and data.get("node") == "baked"]
    # Core leaves out updates that follow too quickly.
    assert len(progress) >= 2 and progress[-1]["value"] == progress[-1]["max"] > 30


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"sample": None}, "latent: the policy 'recommended' decides while sampling"),
        ({"steps": "one step", "step": 9}, "step: the run has 3 steps, not 9"),
        ({"filename_prefix": "../../elsewhere"}, "filename_prefix: .* cannot be used"),
        ({"model": "model"}, "carries no LoRAs of DualLoRADynamicLoader"),
    ],
)
def test_bad_wishes(server, inputs, said):
    with pytest.raises(WorkflowError, match=f"BakeFusedLoRA .*{said}"):
        run(server, world(dual=loader(), baked=bake(**inputs), **sampled("live", "dual")))
