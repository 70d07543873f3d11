"""``make demo``: this subject in that style, by the real ComfyUI on the CPU.

Starts ComfyUI with the pack, queues workflows of stock loaders and our nodes on the small embedded world, and writes
to ``output/demo/``: a labelled comparison picture, the layer x step routing map, and the run's report as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from bootstrap_host import find_host
from comfy_server import ComfyServer
from host_base import make_base, named_base
from repo_paths import OUTPUT

from .tables.demo_pictures import comparison, routing_map

PAIRS = (("fox", "openmoji"), ("alien", "fluent-emoji-high-contrast"), ("hamburger", "openmoji"))
COLUMNS = ("subject LoRA only", "style LoRA only", "stacked", "paper", "recommended", "recommended + guidance")
STYLE_REFERENCE = "koala"
STEPS, CFG = 16, 2.5
Workflow = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def workflow(subject: str, style: str, seeds: list[int]) -> Workflow:
    """All columns of one pair, API format. A picture's SaveImage node is called ``save/<column>/<seed>``."""
    loras = f"lora_subject_{subject}.safetensors", f"lora_style_{style}.safetensors"
    graph: Workflow = {
        "model": node("UNETLoader", unet_name="emoji_tinyflux_fp16.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="emoji_taef1_vae_fp16.safetensors"),
        "clip_encoder": node("MetricEncoderLoader", encoder_name="emoji_clip.safetensors"),
        "dino_encoder": node("MetricEncoderLoader", encoder_name="emoji_dino.safetensors"),
        "prompt": node("EmojiWorldPrompt", subject=subject, style=style),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "subject_image": node("LoadImage", image=f"reference_{subject}_twemoji.png"),
        "style_image": node("LoadImage", image=f"style_{style}_{STYLE_REFERENCE}.png"),
        "one": node("LoraLoaderModelOnly", model=["model", 0], lora_name=loras[0], strength_model=1.0),
        "other": node("LoraLoaderModelOnly", model=["model", 0], lora_name=loras[1], strength_model=1.0),
        "both": node("LoraLoaderModelOnly", model=["one", 0], lora_name=loras[1], strength_model=1.0),
        "dual": node(
            "DualLoRADynamicLoader",
            model=["model", 0],
            subject_lora=loras[0],
            style_lora=loras[1],
            subject_strength=1.0,
            style_strength=1.0,
            subject_clip_strength=1.0,
            style_clip_strength=1.0,
        ),
        "paper": node("KLLayerRouter", model=["dual", 0], policy="paper", temperature=0.5, balance=0.0),
        "loader report": node("PreviewAny", source=["dual", 2]),
    }
    models = dict(zip(COLUMNS, ("one", "other", "both", "paper", "dual", "dual"), strict=True))
    for column, model in models.items():
        for seed in seeds:
            name = f"{column}/{seed}"
            common = {
                "model": [model, 0],
                "seed": seed,
                "steps": STEPS,
                "cfg": CFG,
                "sampler_name": "euler",
                "scheduler": "simple",
                "positive": ["prompt", 0],
                "negative": ["prompt", 1],
                "latent_image": ["empty", 0],
                "denoise": 1.0,
            }
            if "guidance" in column:
                graph[f"sample/{name}"] = node(
                    "MetricGuidedSampler",
                    **common,
                    vae=["vae", 0],
                    subject_image=["subject_image", 0],
                    style_image=["style_image", 0],
                    clip_encoder=["clip_encoder", 0],
                    dino_encoder=["dino_encoder", 0],
                )
                graph[f"scores/{name}"] = node("PreviewAny", source=[f"sample/{name}", 1])
            else:
                graph[f"sample/{name}"] = node("KSampler", **common)
            if model in ("paper", "dual"):
                graph[f"routing/{name}"] = node("RoutingReport", model=[model, 0], latent=[f"sample/{name}", 0])
            graph[f"decode/{name}"] = node("VAEDecode", samples=[f"sample/{name}", 0], vae=["vae", 0])
            graph[f"save/{name}"] = node("SaveImage", images=[f"decode/{name}", 0], filename_prefix=f"demo/{subject}")
    return graph


def fill_defaults(graph: Workflow, object_info: dict[str, Any]) -> Workflow:
    """Our nodes' widgets that the graph leaves out, at their defaults, as the page would send them."""
    for item in graph.values():
        for section in object_info[item["class_type"]]["input"].values():
            for name, (_, *options) in section.items():
                if name not in item["inputs"] and options and "default" in options[0]:
                    item["inputs"][name] = options[0]["default"]
    return graph


class Progress:
    """One line that tells what is being sampled."""

    def __init__(self, total: int) -> None:
        self.done, self.total, self.live = 0, total, sys.stdout.isatty()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        name = str(data.get("node") or "")
        if kind == "executed" and name.startswith("save/"):
            self.done += 1
            print(f"{chr(13) if self.live else ''}  {self.done:2}/{self.total} {name[5:]:<40}", end="", flush=True)
            print(end="" if self.live else "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each pair")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUTPUT / "demo")
    options = parser.parse_args()
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    options.out.mkdir(parents=True, exist_ok=True)

    host, base = find_host(), make_base(named_base("demo"))
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = {"steps": STEPS, "cfg": CFG, "seeds": seeds, "pairs": []}
    progress = Progress(len(PAIRS) * len(COLUMNS) * len(seeds))
    start = time.monotonic()
    print(f"Starting ComfyUI ({host.name}) ...", flush=True)
    with ComfyServer(host, base) as server:
        object_info = server.object_info()
        for subject, style in PAIRS:
            print(f"\n{subject} in {style}", flush=True)
            graph = fill_defaults(workflow(subject, style, seeds), object_info)
            outputs = server.queue(graph, timeout=600, on_event=progress)["outputs"]
            picture = lambda name, outputs=outputs: Image.open(io.BytesIO(server.view(outputs[name]["images"][0])))  # noqa: E731
            for seed in seeds:
                rows.append(
                    {
                        "subject": subject,
                        "style": style,
                        "seed": seed,
                        "references": [
                            Image.open(base / "input" / graph[role]["inputs"]["image"])
                            for role in ("subject_image", "style_image")
                        ],
                        "pictures": [picture(f"save/{column}/{seed}") for column in COLUMNS],
                        "truth": Image.open(base / "input" / f"truth_{subject}_{style}.png"),
                    }
                )
            report["pairs"].append(
                {
                    "subject": subject,
                    "style": style,
                    "loader": outputs["loader report"]["text"][0],
                    "routing": {
                        column: {str(seed): outputs[f"routing/{column}/{seed}"]["routing"][0] for seed in seeds}
                        for column in COLUMNS[3:]
                    },
                    "guidance": {
                        str(seed): json.loads(outputs[f"scores/{COLUMNS[-1]}/{seed}"]["text"][0]) for seed in seeds
                    },
                }
            )
    report["seconds"] = round(time.monotonic() - start, 1)
    comparison(rows, COLUMNS).save(options.out / "comparison.png")
    records = report["pairs"][0]["routing"]
    first = {column: records[column][str(seeds[0])] for column in ("paper", "recommended")}
    routing_map(first, options.out / "routing_map.png", f"{PAIRS[0][0]} in {PAIRS[0][1]}")
    (options.out / "report.json").write_text(json.dumps(report), encoding="utf-8")
    print(f"\n\nDone in {report['seconds']:.0f} s. Look at:")
    for name in ("comparison.png", "routing_map.png", "report.json"):
        print(f"  {options.out / name}")


if __name__ == "__main__":
    main()
