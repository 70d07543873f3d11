"""The small world's prompt node: tokens to CONDITIONING."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from repo_paths import WORLD


@pytest.fixture(scope="module")
def world_nodes() -> ModuleType:
    """Loaded by path, as ComfyUI loads a custom node."""
    spec = importlib.util.spec_from_file_location("emoji_world_nodes", WORLD / "world_nodes" / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_prompt_has_the_shapes_the_model_was_trained_on(world_nodes: ModuleType) -> None:
    positive, negative = world_nodes.EmojiWorldPrompt.execute("fox", "openmoji").args
    for ((context, extra),) in (positive, negative):
        assert context.shape == (1, 4, 256) and extra["pooled_output"].shape == (1, 256)
        assert torch.isfinite(context).all()
    (null,) = (context for context, _ in negative)
    assert torch.equal(null, null[:, :1].expand_as(null))


def test_tokens_are_the_loras_triggers(world_nodes: ModuleType) -> None:
    words, (context, _) = world_nodes.vocabulary(), world_nodes.embeddings()
    ((prompt, _),), _ = world_nodes.EmojiWorldPrompt.execute("fox", "openmoji").args
    style = words["tokens"].index(f"<sks_style{words['sks_style_index']['openmoji']}>")
    subject = words["tokens"].index(f"<sks_subject{words['sks_subject_index']['fox']}>")
    assert torch.equal(prompt[0, 1], context[style]) and torch.equal(prompt[0, 2], context[subject])


def test_every_choice_gives_a_prompt_of_its_own(world_nodes: ModuleType) -> None:
    words = world_nodes.vocabulary()
    prompts = [
        world_nodes.EmojiWorldPrompt.execute(subject, style).args[0][0][0]
        for subject in words["sks_subject_index"]
        for style in (*words["sks_style_index"], world_nodes.NONE)
    ]
    assert len({prompt.numpy().tobytes() for prompt in prompts}) == len(prompts)
