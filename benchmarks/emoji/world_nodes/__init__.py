"""The small world's prompt as a ComfyUI node: its learned tokens stand in for a text encoder. Demo and tests only."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import comfy.utils
from comfy_api.latest import ComfyExtension, io

TOKENS = Path(__file__).resolve().parent.parent / "assets" / "tokens"
NONE = "none"


@lru_cache(maxsize=1)
def vocabulary() -> dict:
    """Token names, and which tokens the LoRAs were trained on."""
    return json.loads((TOKENS / "emoji_tokens.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def embeddings() -> tuple:
    """Context and pooled embedding tables ``[tokens, 256]``."""
    tables = comfy.utils.load_torch_file(str(TOKENS / "emoji_tokens_fp16.safetensors"), safe_load=True)
    return tables["tok"].float(), tables["pool"].float()


def conditioning(tokens: list[str]) -> list:
    """CONDITIONING of token names: context ``[1, n, 256]``, pooled output ``[1, 256]``."""
    names = vocabulary()["tokens"]
    ids = [names.index(token) for token in tokens]
    context, pooled = embeddings()
    return [[context[ids][None], {"pooled_output": pooled[ids].mean(0, keepdim=True)}]]


class EmojiWorldPrompt(io.ComfyNode):
    """A subject and a style of the small world as CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        words = vocabulary()
        return io.Schema(
            node_id="EmojiWorldPrompt",
            display_name="Emoji World Prompt",
            category="LoRA Conductor/small world",
            description="The prompt of LoRA Conductor's small demo world: the trigger tokens of a subject and a style.",
            inputs=[
                io.Combo.Input(
                    "subject", options=list(words["sks_subject_index"]), tooltip="Subject whose LoRA is used."
                ),
                io.Combo.Input(
                    "style", options=[*words["sks_style_index"], NONE], tooltip="Style whose LoRA is used, or none."
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt."),
                io.Conditioning.Output("negative", tooltip="The empty prompt."),
            ],
        )

    @classmethod
    def execute(cls, subject: str, style: str) -> io.NodeOutput:
        words = vocabulary()
        style_token = "<null>" if style == NONE else f"<sks_style{words['sks_style_index'][style]}>"
        subject_token = f"<sks_subject{words['sks_subject_index'][subject]}>"
        positive = conditioning(["<bos>", style_token, subject_token, f"class:{words['class_of'][subject]}"])
        return io.NodeOutput(positive, conditioning(["<null>"] * 4))


class EmojiWorld(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [EmojiWorldPrompt]


async def comfy_entrypoint() -> EmojiWorld:
    return EmojiWorld()
