"""Inputs of our nodes whose values come by a link: core compares only what is set on the node itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from comfy_api.latest import io

from lora_conductor.host.core import ConductorError
from lora_conductor.nodes.bake import BakeFusedLoRA
from lora_conductor.nodes.encoder_loader import MetricEncoderLoader
from lora_conductor.nodes.guidance import MetricGuidance
from lora_conductor.nodes.loader import DualLoRADynamicLoader
from lora_conductor.nodes.plan import LoadRoutingPlan
from lora_conductor.nodes.router import KLLayerRouter

from .. import mutations
from ..cases import Parser
from . import setting
from .plans import PLANS
from .stacks import SPELLED, made_of

PLAN = "fuzz_plan.json"


def _load_plan(file: Any) -> Any:
    LoadRoutingPlan.fingerprint_inputs(file)
    return LoadRoutingPlan.execute(file)


NODES: dict[str, tuple[Any, Callable[..., Any], dict[str, Any]]] = {
    "LoadRoutingPlan": (LoadRoutingPlan, _load_plan, {"file": f"{PLAN} [input]"}),
    "MetricEncoderLoader": (
        MetricEncoderLoader,
        MetricEncoderLoader.execute,
        {"encoder_name": "nowhere.safetensors", "library": "auto", "model_name": "", "features": "embedding"},
    ),
    "DualLoRADynamicLoader": (
        DualLoRADynamicLoader,
        lambda **inputs: DualLoRADynamicLoader.execute(setting.model(), **inputs),
        {"subject_lora": setting.SUBJECT, "style_lora": "None", "subject_strength": 1.0, "style_strength": 0.5},
    ),
    "KLLayerRouter": (KLLayerRouter, lambda **inputs: KLLayerRouter.execute(setting.styled(), **inputs), {}),
    "MetricGuidance": (
        MetricGuidance,
        lambda **inputs: MetricGuidance.execute(setting.styled(), **inputs),
        {"subject_strength": 0.0, "style_strength": 0.0},
    ),
    "BakeFusedLoRA": (
        BakeFusedLoRA,
        lambda **inputs: BakeFusedLoRA.execute(setting.styled(), **inputs),
        {"steps": "average", "step": 1, "rank": 1, "dtype": "fp16", "filename_prefix": "fuzz_inputs/x"},
    ),
}


def _widgets(node: Any) -> dict[str, Any]:
    """Its inputs that are set on the node itself, at their defaults."""
    return {part.id: part.default for part in node.define_schema().inputs if isinstance(part, io.WidgetInput)}


def _seeds() -> list[bytes]:
    setting.styled()
    setting.put(setting.INPUT / PLAN, PLANS.seeds()[3])
    cases = [{"node": name, "inputs": {**_widgets(node), **usual}} for name, (node, _, usual) in NODES.items()]
    return [json.dumps(case).encode() for case in cases]


def _read(data: bytes) -> None:
    case = json.loads(data)
    name = case.get("node") if isinstance(case, dict) else None
    if not isinstance(name, str) or name not in NODES or not isinstance(case.get("inputs"), dict):
        return
    node, execute, usual = NODES[name]
    own = {**_widgets(node), **usual}
    given = {key: made_of(case["inputs"].get(key, value)) for key, value in own.items()}
    with _hidden(node), setting.known_keys(), setting.folder_of(setting.OUTPUT / "fuzz_inputs"):
        try:
            execute(**given)
        except ConductorError as error:
            if "nowhere.safetensors" not in str(error):  # the only good name there is of an encoder
                raise


@contextlib.contextmanager
def _hidden(node: Any) -> Iterator[None]:
    """What core tells a node of the workflow."""
    with mock.patch.object(node, "hidden", SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo={}), create=True):
        yield


VALUES = (
    *SPELLED,
    setting.SUBJECT,
    "None",
    "../x",
    "/etc/passwd",
    f"{PLAN} [input]",
    f"../{PLAN} [input]",
    "x [output]",
)
VALUES += ("sum", "paper", "kl_soft", "layer", "head", "x0", "auto", "open_clip", "average", "one step", "fp32", "a/b")
INPUTS = Parser(_seeds, _read, (ConductorError,), (mutations.json_with(VALUES),))
