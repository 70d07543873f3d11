"""Workflows in API format and what the page sends along: where a latent came from, its seeds, which page shows it."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace
from typing import Any

import torch
from comfy_execution.utils import CurrentNodeContext

from lora_conductor.fusion.policies import KLSoft
from lora_conductor.host.core import ConductorError, Origin, printable
from lora_conductor.host.core.page import ids_of_prompt
from lora_conductor.host.fusing import load_loras, record_or_reason, run_report, set_policy
from lora_conductor.host.loras import LoraChoice

from ...host import tiny
from .. import mutations
from ..cases import Parser
from . import setting

ID = "prompt-id"


@functools.cache
def _run() -> tuple[Any, torch.Tensor]:
    """A model that has sampled as node "3", and the latent."""
    base = setting.styled()
    model, _, _ = load_loras(base, None, [LoraChoice(setting.SUBJECT, "subject", 1.0, 1.0)])
    routed = set_policy(model, KLSoft())
    with CurrentNodeContext(ID, "3", None):
        return routed, tiny.sample(routed, steps=2)


def _seeds() -> list[bytes]:
    sampler = {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["2", 0], "latent_image": ["4", 0]}}
    prompt = {
        "1": {"class_type": "RoutingReport", "inputs": {"model": ["2", 0], "latent": ["3", 0]}},
        "2": {"class_type": "KLLayerRouter", "inputs": {"policy": "kl_soft"}},
        "3": sampler,
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5:1": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "noise_seed": 2**63}},
    }
    workflow = {"extra_pnginfo": {"workflow": {"id": "a-b", "nodes": []}}, "client_id": "c", "create_time": 1}
    later = {**prompt, "1": {"class_type": "RoutingReport", "inputs": {"latent": ["5:1", 0]}}}
    cases = [{"prompt": prompt, "extra": workflow, "node": "1"}, {"prompt": later, "extra": {}, "node": "1"}]
    return [json.dumps(case).encode() for case in cases]


def _read(data: bytes) -> None:
    case = json.loads(data)
    case = case if isinstance(case, dict) else {}
    node, extra = str(case.get("node")), case.get("extra")
    prompt = _as_core_lets_through(case.get("prompt"))
    model, samples = _run()
    origin = Origin(prompt, node)
    other = samples + 1  # what another node made of it
    with CurrentNodeContext(ID, node, None):
        for latent in (samples, other):
            record, missing, _ = record_or_reason(model, latent, origin)
            setting.printed(printable(missing or run_report(model, record, prompt, node)))
            json.dumps(printable(record.to_json()), ensure_ascii=False).encode()
        queue = SimpleNamespace(currently_running={0: (0, ID, prompt, extra if isinstance(extra, dict) else {}, [])})
        json.dumps(printable(ids_of_prompt(SimpleNamespace(prompt_queue=queue)))).encode()


def _as_core_lets_through(prompt: Any) -> dict[str, Any]:
    """Core wants a class of every node, and inputs of those it runs; which other inputs there are it does not ask."""
    found = {}
    for name, node in prompt.items() if isinstance(prompt, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("class_type"), str):
            found[name] = node
    return found


LINKS = (["3", 0], ["1", 0], [[], 0], [{}, 0], ["3"], [None, 0], ["5:1", "x"], [["3", 0], 0], [3, 0])
PROMPTS = Parser(
    _seeds, _read, (ConductorError,), (mutations.json_with(LINKS, ("latent", "inputs", "seed", "noise_seed")),)
)
