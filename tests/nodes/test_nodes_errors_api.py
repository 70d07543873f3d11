"""Bad LoRA files: the user is told what is wrong, before sampling starts, and the next good run works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from comfy_server import ComfyServer, WorkflowError

from ..host.workflows import STYLE, SUBJECT, latent, loader, node, router, run, sampled, world

WRONG_FAMILY, TRUNCATED, EMPTY, NOT_FINITE, REMOVED = (
    f"bad_{name}.safetensors" for name in ("wrong_family", "truncated", "empty", "not_finite", "removed")
)


@pytest.fixture(scope="module")
def comfy(server: ComfyServer) -> Iterator[ComfyServer]:
    folder = server.base_dir / "models" / "loras"
    block = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    factors = {f"{block}.lora_down.weight": torch.ones(4, 320), f"{block}.lora_up.weight": torch.ones(320, 4)}
    save_file(factors, folder / WRONG_FAMILY)
    whole = (folder / SUBJECT).read_bytes()
    (folder / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    (folder / EMPTY).write_bytes(b"")
    flux = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{flux}.lora_down.weight": torch.full((4, 256), torch.nan), f"{flux}.lora_up.weight": torch.ones(768, 4)},
        folder / NOT_FINITE,
    )
    (folder / REMOVED).write_bytes(whole)
    yield server
    for file in folder.glob("bad_*"):
        file.unlink()


def refusal(server: ComfyServer, graph: dict[str, Any]) -> str:
    """The error text of a workflow that must fail without a single sampling step."""
    started: set[str] = set()
    with pytest.raises(WorkflowError) as caught:
        server.queue(
            graph, timeout=60, on_event=lambda kind, data: started.add(data["node"]) if kind == "progress" else None
        )
    samplers = {name for name, node in graph.items() if "Sampler" in node["class_type"]}
    assert samplers and not started & samplers
    return str(caught.value)


def test_loras_with_nothing_in_common_are_both_applied(comfy: ComfyServer) -> None:
    """The halves of a B-LoRA, say: what the router's plain sum does, and the report says so."""
    folder = comfy.base_dir / "models" / "loras"
    for file, blocks in (("bad_double.safetensors", "double"), ("bad_single.safetensors", "single")):
        factors = load((folder / (SUBJECT if blocks == "double" else STYLE)).read_bytes())
        save_file({key: value for key, value in factors.items() if f"_{blocks}_" in key}, folder / file)
    apart = loader(subject="bad_double.safetensors", style="bad_single.safetensors")
    routers = {"plain": router("sum"), "paper": router("paper")}
    runs = {k: v for name in ("plain", "paper") for k, v in sampled(name, name, cfg=1.0, report=True).items()}
    outputs = run(comfy, world(dual=apart, report=node("PreviewAny", source=["dual", 2]), **routers, **runs))
    plain, paper = (latent(comfy, outputs, name) for name in ("plain", "paper"))
    assert float((plain - paper).abs().max() / (plain.max() - plain.min())) < 1e-5
    assert "no layer is touched by both" in outputs["report"]["text"][0]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (WRONG_FAMILY, "does not fit this model"),
        (TRUNCATED, "damaged, cut off or not a LoRA"),
        (EMPTY, "is an empty file"),
        (NOT_FINITE, "NaN or infinite"),
    ],
)
def test_bad_file_is_named_before_sampling(comfy: ComfyServer, file: str, said: str) -> None:
    good = world(dual=loader(), **sampled("a", "dual"))
    before = latent(comfy, run(comfy, good), "a")
    text = refusal(comfy, world(dual=loader(style=file), **sampled("a", "dual")))
    assert "DualLoRADynamicLoader" in text and file in text and said in text
    good["a.sample"]["inputs"]["denoise"] = 0.99995  # counts as 1, but is no cached result
    assert torch.equal(latent(comfy, run(comfy, good), "a"), before)


def test_missing_file_is_refused_with_its_name(comfy: ComfyServer) -> None:
    text = refusal(comfy, world(dual=loader(subject="never_was.safetensors"), **sampled("a", "dual")))
    assert "never_was.safetensors" in text and "subject_lora" in text


def test_file_removed_while_the_workflow_waits(comfy: ComfyServer) -> None:
    # A link whose target is gone is still listed, so only the loader can notice.
    path = comfy.base_dir / "models" / "loras" / REMOVED
    path.unlink()
    path.symlink_to(Path("nowhere.safetensors"))
    text = refusal(comfy, world(dual=loader(subject=REMOVED), **sampled("a", "dual")))
    assert REMOVED in text and "loras" in text
