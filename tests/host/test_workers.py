"""Two servers as workers behind one queue: the same models and output folder, the same prompt, the same latents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_server import ComfyServer
from host_base import make_base

from . import workflows as w

ENCODERS = ("emoji_clip.safetensors", "emoji_dino.safetensors")


@pytest.fixture(scope="module")
def workers(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ComfyServer]]:
    """Two, each with a base of its own, but one models folder and one output folder, as over a network drive."""
    first, second = (make_base(tmp_path_factory.mktemp(f"worker{n}")) for n in (1, 2))
    for shared in ("models", "output"):
        shutil.rmtree(second / shared)
        (second / shared).symlink_to(first / shared, target_is_directory=True)
    # Core refuses to write below a link that leads out of its output folder, so the second is told where it is.
    output = ("--output-directory", str(first / "output"))
    with ComfyServer(host.path, first) as one, ComfyServer(host.path, second, extra_args=output) as two:
        yield [one, two]


def at_once(workers: list[ComfyServer], *graphs: dict[str, Any]) -> list[dict[str, Any]]:
    """Each worker's outputs of its workflow, run at the same time; one workflow is for all."""
    given = graphs if len(graphs) == len(workers) else graphs * len(workers)
    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(w.run, workers, given))


def latents(workers: list[ComfyServer], outputs: list[dict[str, Any]], name: str) -> list[torch.Tensor]:
    return [w.latent(server, found, name) for server, found in zip(workers, outputs, strict=True)]


def drawn(seed: int) -> dict[str, Any]:
    """A guided picture whose references each LoRA draws alone."""
    own = {"seed": seed, "guidance_every": 1, "references_from": "each LoRA alone"}
    guided = w.guided("a", ("subject_image", "style_image"), model="routed", **own)
    return w.guidance_world(*ENCODERS, dual=w.loader(), routed=w.router("recommended"), **guided)


def test_same_prompt_same_latents(workers: list[ComfyServer]) -> None:
    graph = w.world(dual=w.loader(), routed=w.router("recommended"), **w.sampled("a", "routed", report=True))
    outputs = at_once(workers, graph)
    one, two = latents(workers, outputs, "a")
    assert torch.equal(one, two)
    assert w.record(outputs[0], "a")["weights"] == w.record(outputs[1], "a")["weights"]


@pytest.mark.parametrize("policy", ["dare", "della", "random"])
def test_drawn_by_chance_alike(workers: list[ComfyServer], policy: str) -> None:
    """What a policy draws at random hangs on the prompt's seed and settings, not on the machine."""
    graph = w.world(dual=w.loader(), routed=w.router(policy), **w.sampled("a", "routed"))
    assert torch.equal(*latents(workers, at_once(workers, graph), "a"))


def test_drawn_references_are_each_workers_own_and_alike(workers: list[ComfyServer]) -> None:
    """One worker has drawn other references before: what it keeps does not leak into this prompt."""
    w.run(workers[0], drawn(seed=5))
    one, two = latents(workers, at_once(workers, drawn(seed=6)), "a")
    assert torch.equal(one, two)


def test_a_plan_of_one_is_replayed_by_the_other(workers: list[ComfyServer]) -> None:
    graph = w.world(dual=w.loader(), routed=w.router("kl_soft"), **w.sampled("a", "routed"))
    plan = {"model": ["routed", 0], "latent": ["a.sample", 0], "filename_prefix": "routing_plans/worker"}
    outputs = w.run(workers[0], graph | {"plan": w.node("SaveRoutingPlan", **plan)})
    file = Path(outputs["plan"]["text"][0].rpartition(" saved as ")[2])
    again = w.world(dual=w.loader(), file=w.node("LoadRoutingPlan", file=f"routing_plans/{file.name} [output]"))
    again["replayed"] = w.router("paper")
    again["replayed"]["inputs"]["plan"] = ["file", 0]
    replayed = w.run(workers[1], again | w.sampled("again", "replayed"))
    assert torch.equal(w.latent(workers[1], replayed, "again"), w.latent(workers[0], outputs, "a"))


def test_two_times_a_hundred_saves_are_two_hundred_files(workers: list[ComfyServer]) -> None:
    """At the same time, under the same name in one folder."""
    saves = {
        # The same place said otherwise: of two nodes with the same inputs ComfyUI runs one.
        f"plan{number}": w.node(
            "SaveRoutingPlan",
            model=["routed", 0],
            latent=["a.sample", 0],
            filename_prefix=f"saves/{'./' * number}plan",
        )
        for number in range(100)
    }
    graph = w.world(dual=w.loader(), routed=w.router("kl_soft"), **w.sampled("a", "routed"))
    at_once(workers, graph | saves)
    files = list((workers[0].base_dir / "output" / "saves").iterdir())
    assert len(files) == 200 and len({file.read_text() for file in files}) == 1


def test_a_file_baked_by_one_is_loaded_by_the_other(workers: list[ComfyServer]) -> None:
    inputs = {"steps": "average", "step": 1, "rank": 0, "dtype": "fp16", "filename_prefix": "loras/worker"}
    graph = w.world(dual=w.loader(), routed=w.router("sum"), **w.sampled("a", "routed"))
    graph["bake"] = w.node("BakeFusedLoRA", model=["routed", 0], **inputs)
    graph["name"] = w.node("PreviewAny", source=["bake", 0])
    (name,) = w.run(workers[0], graph)["name"]["text"]
    loaded = w.world(one=w.stock("model", name), **w.sampled("b", "one"))
    assert torch.equal(*latents(workers, at_once(workers, loaded), "b"))


def test_a_lora_replaced_on_the_shared_disk_is_read_anew_by_both(workers: list[ComfyServer]) -> None:
    """What a worker remembers of a file is by its path, time and size: a new file is a new file for all."""
    folder = (workers[0].base_dir / "models" / "loras").resolve()
    file = folder / "worker_shared.safetensors"
    try:
        found = []
        for source in (w.STYLE, "lora_style_sepia.safetensors"):
            part = file.with_suffix(".part")
            shutil.copyfile((folder / source).resolve(), part)
            part.replace(file)
            graph = w.world(dual=w.loader(style=file.name), routed=w.router("recommended"), **w.sampled("a", "routed"))
            # The executor sees the same file name: another denoise, which counts as 1 too, makes it another prompt,
            # and another strength of nothing at all makes the loader run again.
            graph["dual"]["inputs"]["style_clip_strength"] = 1.0 + len(found)
            one, two = latents(workers, at_once(workers, graph), "a")
            assert torch.equal(one, two)
            found.append(one)
        assert not torch.equal(*found)
    finally:
        file.unlink(missing_ok=True)
