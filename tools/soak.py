"""Hours of use in minutes: random prompts and injected failures, a clean reference after each: ``make soak``.

    soak.py                        two servers, 300 prompts each
    soak.py --servers 1 --prompts 20 --only full_disk --only interrupted

Every prompt is drawn at random (seeded): policies, settings, LoRAs, sizes, guidance, and what can go wrong on the way.
After each, a reference is sampled, whose latents must be the first one's bit for bit, and the server's memory, threads
and open handles are read: what it has allocated, after a collection of garbage, as glibc counts it; elsewhere what is
resident, which moves with what the allocator keeps. Writes output/soak.json; exits with 1 when the verdict is bad.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bootstrap_host import HostError, bring_host, host_version
from comfy_server import ComfyServer, WorkflowError
from host_base import make_base
from repo_paths import OUTPUT, REPO, link
from world_workflows import ENCODERS, baked, workflows

MAX_SLOPE = 0.1  # MB a prompt, over the last half
JUDGED_FROM = 40  # prompts a server: memory of fewer is warming up
LAYER = "double_blocks.0.img_attn.qkv"
FINE, REFUSED, INTERRUPTED, OUT_OF_MEMORY = "fine", "refused by name", "interrupted", "out of memory"
CORES_OWN = "the same error without us"
Graph = dict[str, dict[str, Any]]


@dataclass
class Figures:
    """What was seen of one server; the lists have an entry a prompt.

    Attributes:
        resident: MB, after the reference and a collection of garbage.
        allocated: MB that were not freed then; None where the allocator does not tell.
        leaked: how often ComfyUI took a model for leaked.
        poisoned: prompts after which a reference was another picture.
        surprises: what ended otherwise than it should, with the error.
        ends: how often each kind ended how.
    """

    resident: list[float] = field(default_factory=list)
    allocated: list[float | None] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    leaked: int = 0
    poisoned: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> list[float]:
        """What is judged: allocated memory, where it is known."""
        known = [value for value in self.allocated if value is not None]
        return known if len(known) == len(self.resident) else self.resident

    @property
    def slope(self) -> float:
        """MB a prompt over the last half."""
        return slope(self.memory)

    def complaints(self) -> list[str]:
        """What is not as it should be, in words."""
        found = [f"poisoned reference after {prompt}" for prompt in self.poisoned] + self.surprises
        if len(self.resident) < JUDGED_FROM:
            return found
        if self.slope > MAX_SLOPE:
            found.append(f"memory grows by {self.slope:.2f} MB a prompt")
        for name in ("threads", "handles"):
            if (more := growth(getattr(self, name))) > 0:
                found.append(f"{more:g} more {name} in the last quarter than in the one before")
        return found


def slope(values: Sequence[float]) -> float:
    """By least squares, a prompt, over the last half."""
    half = values[len(values) // 2 :]
    return statistics.linear_regression(range(len(half)), half).slope if len(half) > 1 else 0.0


def growth(values: Sequence[float]) -> float:
    """Median of the last quarter less that of the quarter before."""
    quarter = len(values) // 4
    return statistics.median(values[-quarter:]) - statistics.median(values[-2 * quarter : -quarter])


class Soak:
    """Random prompts on one server."""

    def __init__(self, server: ComfyServer, seed: str, only: Sequence[str] = ()):
        self.server, self.random, self.figures = server, random.Random(seed), Figures()
        self.output, self.loras = server.base_dir / "output", server.base_dir / "models" / "loras"
        info = server.object_info()
        self.router_inputs = {
            **info["KLLayerRouter"]["input"]["required"],
            **info["KLLayerRouter"]["input"]["optional"],
        }
        self.guided_inputs = info["MetricGuidedSampler"]["input"]["optional"]
        self.samplers = _options(info["KSampler"]["input"]["required"]["sampler_name"])
        self.schedulers = _options(info["KSampler"]["input"]["required"]["scheduler"])
        self.policies = _options(self.router_inputs["policy"])
        names = sorted(file.name for file in self.loras.glob("lora_*.safetensors"))
        self.subjects, self.styles = ([n for n in names if f"lora_{role}" in n] for role in ("subject", "style"))
        self.process = psutil.Process(server.pid)
        self.references = 0
        self.allocated: float | None = None
        self.first: dict[str, bytes] | None = None
        unknown = set(only) - set(KINDS)
        if unknown:
            raise ValueError(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
        self.kinds = {kind: weight for kind, (_, weight) in KINDS.items() if not only or kind in only}

    def run(self, prompts: int, say: Callable[..., None]) -> Figures:
        """The first reference, then so many random prompts with a reference after each."""
        self.reference("the start")
        for number in range(prompts):
            # Every kind once before chance decides, so that short runs see them too.
            kind = (
                sorted(self.kinds)[number]
                if number < len(self.kinds)
                else self.random.choices(list(self.kinds), list(self.kinds.values()))[0]
            )
            name = f"prompt {number + 1} ({kind})"
            with self.cleaned(name):
                end = KINDS[kind][0](self)
                self.figures.ends[f"{kind}: {end}"] = self.figures.ends.get(f"{kind}: {end}", 0) + 1
            self.reference(name)
            self.measure()
            if (number + 1) % 20 == 0:
                say(f"{number + 1} prompts, {self.figures.memory[-1]:.0f} MB")
        self.figures.leaked = self.server.log.count("memory leak with model")
        return self.figures

    @contextlib.contextmanager
    def cleaned(self, name: str) -> Iterator[None]:
        """Errors become surprises; files written on the way are removed, and half-written ones told."""
        try:
            yield
        except WorkflowError as error:
            self.figures.surprises.append(f"{name}: {error}")
        for file in [*self.output.rglob("*"), *self.loras.glob("soak_*")]:
            if file.is_file() or file.is_symlink():
                if ".part" in file.name:
                    self.figures.surprises.append(f"{name}: left {file.name} behind")
                file.unlink()

    def reference(self, name: str) -> None:
        """The same workflow, never from the executor's cache: a denoise above 0.9999 counts as 1."""
        self.references += 1
        denoise = 1.0 - 1e-8 * self.references
        w = workflows
        graph = w.guidance_world(*ENCODERS, dual=w.loader(), routed=w.router("recommended"))
        graph |= w.sampled("plain", "routed", steps=2, denoise=denoise)
        graph |= w.guided("guided", model="routed", steps=2, denoise=denoise, guidance_every=1)
        graph["collect"] = w.node("SoakCollect", latent=["guided.sample", 0])
        try:
            outputs = w.run(self.server, graph)
        except WorkflowError as error:
            self.figures.surprises.append(f"reference after {name}: {error}")
            return
        (self.allocated,) = outputs["collect"]["allocated"]
        found = {n: w.latent(self.server, outputs, n).numpy().tobytes() for n in ("plain", "guided")}
        self.first = self.first or found
        if found != self.first:
            self.figures.poisoned.append(name)
        for file in self.output.glob("*.latent"):
            file.unlink()
        # Core keeps what the last 10000 prompts showed, reports included; that is not ours to measure.
        self.server.post("/history", {"clear": True})

    def measure(self) -> None:
        with self.process.oneshot():
            self.figures.resident.append(self.process.memory_info().rss / 1e6)
            self.figures.allocated.append(self.allocated)
            self.figures.threads.append(self.process.num_threads())
            handles = self.process.num_fds if hasattr(self.process, "num_fds") else self.process.num_handles
            self.figures.handles.append(handles())

    # -- what is drawn ------------------------------------------------------------------------------------------

    def queue(self, graph: Graph) -> str:
        """How a prompt that is valid ended: fine, or with an error of ours that names the input."""
        try:
            self.server.queue(graph, timeout=300)
        except WorkflowError as error:
            if "ConductorError" not in str(error):
                raise
            return REFUSED
        return FINE

    def must(self, end: str, found: str) -> str:
        if end != found:
            raise WorkflowError(f"ended {found}, should be {end}", {})
        return found

    def value(self, spec: list[Any]) -> Any:
        """A value that an input of the node's definition may have."""
        if options := _options(spec):
            return self.random.choice(options)
        kind, more = spec[0], spec[1]
        if kind == "BOOLEAN":
            return self.random.random() < 0.5
        if kind == "INT":
            return self.random.randint(more["min"], min(more["max"], more["min"] + 8))
        return round(self.random.uniform(more["min"], min(more["max"], 3.0)), 3)

    def settings(self, inputs: dict[str, Any], leave: Sequence[str] = ()) -> dict[str, Any]:
        """Some of the settings among a node's inputs, at random."""
        chosen = [
            n for n, spec in inputs.items() if _is_setting(spec) and n not in leave and self.random.random() < 0.3
        ]
        return {name: self.value(inputs[name]) for name in chosen}

    def lora_names(self) -> dict[str, str]:
        return {"subject": self.random.choice(self.subjects), "style": self.random.choice(self.styles)}

    def sampling(self, **changes: Any) -> dict[str, Any]:
        return {
            "seed": self.random.randrange(2**32),
            "steps": self.random.randint(1, 3),
            "cfg": self.random.choice([1.0, 2.5, 4.0]),
            "sampler_name": self.random.choice(self.samplers),
            "scheduler": self.random.choice(self.schedulers),
            **changes,
        }

    def numbers(self, **changes: Any) -> dict[str, Any]:
        """Sampling of a picture: core's kl_optimal makes noise levels of NaN of a single step, with any model."""
        return self.sampling(sampler_name="euler", steps=self.random.randint(2, 3), **changes)

    def routed(self, *, model: str = "model", **loras: str) -> Graph:
        """The small world with a LoRA in each role and a router of any policy and settings."""
        strengths = {f"{role}_strength": round(self.random.uniform(-0.5, 1.5), 2) for role in ("subject", "style")}
        graph = workflows.world(dual=workflows.loader(model, **{**self.lora_names(), **loras}, **strengths))
        policy = self.random.choice(self.policies)
        graph["routed"] = workflows.router(policy)
        graph["routed"]["inputs"] |= self.settings(self.router_inputs, ("policy",))
        if policy == "ssr_merge":
            prompts = {f"{role}_prompt": ["prompt", 0] for role in ("subject", "style")}
            graph["routed"]["inputs"] |= {**prompts, "latent": ["empty", 0]}
        graph["empty"]["inputs"] |= {
            "width": self.random.choice([64, 96]),
            "height": self.random.choice([64, 96]),
            "batch_size": self.random.choice([1, 1, 2]),
        }
        return graph

    def simple(self, **loras: str) -> Graph:
        """A valid workflow that ends well whatever is drawn: for what must be refused for one reason only."""
        return workflows.world(dual=workflows.loader(**loras), routed=workflows.router("kl_soft"))

    def a_lora_of_its_own(self) -> str:
        name = f"soak_{self.random.randrange(2**48):012x}.safetensors"
        shutil.copyfile((self.loras / self.random.choice(self.styles)).resolve(), self.loras / name)
        return name

    # -- the kinds of prompt ------------------------------------------------------------------------------------

    def any_picture(self) -> str:
        graph = self.routed() | workflows.sampled("a", "routed", report=True, **self.sampling())
        try:
            return self.queue(graph)
        except WorkflowError as error:
            # Some samplers cannot do so few steps of some schedules, with any model.
            plain = {name: graph[name] for name in ("model", "prompt", "empty", "a.sample", "a.save")}
            plain["a.sample"]["inputs"]["model"] = ["model", 0]
            try:
                self.server.queue(plain, timeout=300)
            except WorkflowError as without_us:
                if str(without_us) == str(error):
                    return CORES_OWN
            raise

    def guided_picture(self) -> str:
        graph = workflows.guidance_world(*ENCODERS, **self.routed())
        leave = ("references", "mode", "inner_steps", "crops", "time_travel", "prompt", "prompt_strength")
        changes = self.settings(self.guided_inputs, leave) | {"inner_steps": self.random.randint(1, 2)}
        changes |= {"mode": self.random.choice(["x0", "x0", "paper"]), "crops": self.random.choice([0, 2])}
        graph |= workflows.guided("a", model="routed", **self.sampling(sampler_name="euler"), **changes)
        return self.queue(graph)

    def plan_and_bake(self) -> str:
        graph = self.simple(**self.lora_names())
        graph |= workflows.sampled("a", "routed", **self.sampling(sampler_name="euler", scheduler="simple", steps=2))
        graph |= {"plan": self.saved_plan("a"), "bake": baked("routed", "a", "loras/soak")}
        self.must(FINE, self.queue(graph))
        return self.must(FINE, self.queue(self.replay(graph)))

    def plan_of_others(self) -> str:
        subject, other = self.random.sample(self.subjects, 2)
        graph = self.simple(subject=subject) | workflows.sampled("a", "routed", **self.numbers())
        self.must(FINE, self.queue(graph | {"plan": self.saved_plan("a")}))
        graph["dual"]["inputs"]["subject_lora"] = other
        return self.must(REFUSED, self.queue(self.replay(graph)))

    def saved_plan(self, sample: str) -> dict[str, Any]:
        plan = {"model": ["routed", 0], "latent": [f"{sample}.sample", 0], "filename_prefix": "routing_plans/soak"}
        return workflows.node("SaveRoutingPlan", **plan)

    def replay(self, graph: Graph) -> Graph:
        """The same prompt by the plan that was saved last."""
        (file,) = (self.output / "routing_plans").glob("*.json")
        again = {name: node for name, node in graph.items() if name not in ("plan", "bake")}
        again["file"] = workflows.node("LoadRoutingPlan", file=f"routing_plans/{file.name} [output]")
        again["routed"] = workflows.router("paper")
        again["routed"]["inputs"]["plan"] = ["file", 0]
        return again

    def compared(self) -> str:
        inputs = {**self.sampling(sampler_name="euler", scheduler="simple"), "seeds": 1, "denoise": 1.0}
        inputs |= {"policies": ", ".join(self.random.sample([p for p in self.policies if p != "ssr_merge"], 2))}
        links = {"model": ["dual", 0], "vae": ["vae", 0], "positive": ["prompt", 0], "negative": ["prompt", 1]}
        graph = workflows.guidance_world(*ENCODERS, dual=workflows.loader(**self.lora_names()))
        graph["grid"] = workflows.node("ComparePolicies", latent_image=["empty", 0], **links, **inputs)
        graph["show"] = workflows.node("PreviewAny", source=["grid", 1])
        return self.must(FINE, self.queue(graph))

    def interrupted(self) -> str:
        graph = workflows.guidance_world(*ENCODERS, **self.routed())
        if self.random.random() < 0.5:
            graph |= workflows.sampled("a", "routed", **self.sampling(steps=400, sampler_name="euler"))
        else:
            graph |= workflows.guided("a", model="routed", **self.sampling(steps=400, sampler_name="euler"))
        after, stop = self.random.randint(1, 6), threading.Event()

        def watch(kind: str, data: dict[str, Any]) -> None:
            if kind == "progress" and data.get("node") == "a.sample" and data["value"] >= after and not stop.is_set():
                stop.set()
                threading.Thread(target=self.server.interrupt).start()

        try:
            self.server.queue(graph, timeout=300, on_event=watch)
        except WorkflowError as error:
            if "ConductorError" in str(error) and not stop.is_set():
                return REFUSED
            if not str(error).startswith("interrupted"):
                raise
            return INTERRUPTED
        raise WorkflowError("was not interrupted", {})

    def lora_deleted(self) -> str:
        return self.spoiled("deleted")

    def lora_truncated(self) -> str:
        return self.spoiled("truncated")

    def spoiled(self, how: str) -> str:
        file = self.a_lora_of_its_own()
        graph = self.simple(style=file, model="spoilt") | workflows.sampled("a", "routed", **self.sampling())
        graph["spoilt"] = workflows.node("SoakSpoil", model=["model", 0], file=file, how=how)
        return self.must(REFUSED, self.queue(graph))

    def lora_of_nan(self) -> str:
        import safetensors.torch

        file = self.a_lora_of_its_own()
        tensors = safetensors.torch.load((self.loras / file).read_bytes())
        name = self.random.choice(sorted(tensors))
        safetensors.torch.save_file(tensors | {name: tensors[name] * float("nan")}, self.loras / file)
        return self.must(
            REFUSED, self.queue(self.simple(style=file) | workflows.sampled("a", "routed", **self.sampling()))
        )

    def out_of_memory(self) -> str:
        graph = self.simple(**self.lora_names())
        armed = {"model": ["routed", 0], "layer": LAYER, "call": self.random.randint(1, 3)}
        graph["armed"] = workflows.node("SoakOutOfMemory", **armed)
        graph |= workflows.sampled("a", "armed", **self.sampling(steps=4, sampler_name="euler"))
        try:
            self.server.queue(graph, timeout=300)
        except WorkflowError as error:
            if "OutOfMemoryError" not in str(error):
                raise
            return OUT_OF_MEMORY
        raise WorkflowError("did not run out of memory", {})

    def full_disk(self) -> str:
        graph = self.simple(**self.lora_names()) | workflows.sampled(
            "a", "routed", **self.sampling(sampler_name="euler")
        )
        graph["full.sample"] = workflows.node("SoakFullDisk", latent=["a.sample", 0])
        kept = self.random.choice(["plan", "bake"])
        graph[kept] = self.saved_plan("full") if kept == "plan" else baked("routed", "full", "loras/soak")
        found = self.queue({name: node for name, node in graph.items() if name != "a.save"})
        time.sleep(0.1)  # the disk is free again a moment after the prompt
        return self.must(REFUSED, found)

    def all_unloaded(self) -> str:
        """Core's own button: models and the executor's cache go, and everything is read anew."""
        self.server.post("/free", {"unload_models": True, "free_memory": True})
        return FINE


KINDS: dict[str, tuple[Callable[[Soak], str], int]] = {
    "any_picture": (Soak.any_picture, 10),
    "guided_picture": (Soak.guided_picture, 3),
    "plan_and_bake": (Soak.plan_and_bake, 1),
    "plan_of_others": (Soak.plan_of_others, 1),
    "compared": (Soak.compared, 1),
    "interrupted": (Soak.interrupted, 2),
    "lora_deleted": (Soak.lora_deleted, 1),
    "lora_truncated": (Soak.lora_truncated, 1),
    "lora_of_nan": (Soak.lora_of_nan, 1),
    "out_of_memory": (Soak.out_of_memory, 2),
    "all_unloaded": (Soak.all_unloaded, 1),
}
if sys.platform != "win32":
    KINDS["full_disk"] = (Soak.full_disk, 1)


def _options(spec: list[Any]) -> list[Any]:
    """What a combo offers, in the form of any supported ComfyUI; nothing of other inputs."""
    return spec[0] if isinstance(spec[0], list) else spec[1].get("options", []) if spec[0] == "COMBO" else []


def _is_setting(spec: list[Any]) -> bool:
    return bool(_options(spec)) or spec[0] in ("INT", "FLOAT", "BOOLEAN")


def soak(host: Path, servers: int, prompts: int, seed: int, only: Sequence[str] = ()) -> list[Figures]:
    """So many servers at the same time, each with its own files; what was seen of each."""

    def one(number: int) -> Figures:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            base = make_base(Path(folder))
            link(REPO / "tools" / "soak_nodes", base / "custom_nodes" / "soak-nodes")
            # All of Python's objects in what the allocator counts.
            with ComfyServer(host, base, environment={"PYTHONMALLOC": "malloc"}) as server:
                return Soak(server, f"{seed}-{number}", only).run(
                    prompts, lambda text: print(f"server {number}: {text}")
                )

    with ThreadPoolExecutor(servers) as pool:
        return list(pool.map(one, range(1, servers + 1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=300, help="random prompts a server; 300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="only this kind; may be given again")
    parser.add_argument("--output", type=Path, default=OUTPUT / "soak.json")
    options = parser.parse_args()
    try:
        host = bring_host()
    except HostError as error:
        sys.exit(f"error: {error}")
    begun = time.monotonic()
    found = soak(host, options.servers, options.prompts, options.seed, options.only or ())
    minutes = (time.monotonic() - begun) / 60
    complaints = [f"server {n}: {text}" for n, figures in enumerate(found, 1) for text in figures.complaints()]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"comfyui": host_version(host), "seed": options.seed, "minutes": minutes, "complaints": complaints}
    report["servers"] = [{**asdict(figures), "slope": figures.slope} for figures in found]
    options.output.write_text(json.dumps(report, indent=1), encoding="utf-8")
    for number, figures in enumerate(found, 1):
        ranges = (f"{name} {min(values)} to {max(values)}" for name, values in _counts(figures))
        print(
            f"server {number}: {len(figures.resident)} prompts, {len(figures.poisoned)} poisoned references, "
            f"{figures.slope:+.3f} MB a prompt over the last half ({figures.memory[-1]:.0f} MB; resident "
            f"{slope(figures.resident):+.3f}, {figures.resident[-1]:.0f} MB), "
            f"{', '.join(ranges)}, {figures.leaked} models taken for leaked"
        )
        for end, count in sorted(figures.ends.items()):
            print(f"    {count:>4}  {end}")
    print(*complaints, sep="\n")
    short = options.prompts < JUDGED_FROM
    verdict = "FAILED" if complaints else "held (too short to judge memory)" if short else "held"
    print(f"{verdict}, {minutes:.1f} minutes: {options.output}")
    return 1 if complaints else 0


def _counts(figures: Figures) -> Iterator[tuple[str, list[int]]]:
    """Threads and handles over the last half."""
    for name in ("threads", "handles"):
        values = getattr(figures, name)
        yield name, values[len(values) // 2 :]


if __name__ == "__main__":
    sys.exit(main())
