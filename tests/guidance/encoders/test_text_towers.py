"""Text halves rebuilt from files: prompt and picture compared as the library itself compares them."""

import dataclasses
import json
from pathlib import Path

import comfy.sd1_clip
import pytest
import torch
from safetensors.torch import load_file

from lora_conductor.guidance.encoders import (
    LIBRARIES,
    METADATA_KEY,
    EncoderFileError,
    TokenizerFolders,
    build_from_file,
    build_text_from_file,
)
from lora_conductor.guidance.encoders.base import CLIP_VOCABULARY
from lora_conductor.guidance.losses import CLIP_TEXT, SimilarityObjective, SimilarityTerm, cosine_similarity

from ..objectives import loss

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
PROMPT = "A fox, drawn in ink"
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": CLIP_VOCABULARY, "width": 16, "heads": 2, "layers": 2},
}
HALF = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CLIP_TOKENIZER = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"


def described(**changes):
    description = {"library": "open_clip", "role": "clip", "config": OPEN_CLIP, "image_size": 32}
    description |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], **changes}
    return {METADATA_KEY: json.dumps(description)}


def library_cosines(image, text):
    return torch.nn.functional.cosine_similarity(image, text)


@pytest.mark.parametrize("custom", [False, True])
def test_open_clips_own_score(custom, record_property):
    import open_clip

    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**OPEN_CLIP).eval()
    metadata = described(config={**OPEN_CLIP, "custom_text": custom})
    encoder = build_from_file(model.state_dict(), metadata)
    assert encoder.reads_text
    text = build_text_from_file(model.state_dict(), metadata).embed(PROMPT)
    with torch.no_grad():
        pixels = encoder.preprocess(IMAGES)
        expected = library_cosines(
            model.encode_image(pixels), model.encode_text(open_clip.SimpleTokenizer(context_length=16)([PROMPT]))
        )
        got = cosine_similarity(encoder.embed(IMAGES), text)
    record_property("difference from open_clip's score", float((got - expected).abs().max()))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    other = build_text_from_file(model.state_dict(), metadata).embed("a rocket")
    assert not torch.allclose(other, text)


def test_open_clip_models_with_a_tokenizer_of_their_own():
    """SigLIP's and others': its files lie beside the checkpoint, and no name of it is looked up anywhere."""
    import open_clip
    import transformers

    text = {
        **OPEN_CLIP["text_cfg"],
        "hf_tokenizer_name": "nobody/nothing",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    model = open_clip.CustomTextCLIP(**{**OPEN_CLIP, "text_cfg": text}).eval()
    metadata = described(config={**OPEN_CLIP, "text_cfg": text, "custom_text": True})
    got = build_text_from_file(model.state_dict(), metadata, folders=TokenizerFolders(CLIP_TOKENIZER)).embed(PROMPT)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(CLIP_TOKENIZER))
    tokens = tokenizer("a fox drawn in ink", padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(got, model.encode_text(tokens))


@pytest.mark.parametrize("kind", ["CLIPModel", "SiglipModel"])
def test_transformers_own_score(kind, tmp_path, record_property):
    import transformers

    model_class = getattr(transformers, kind)
    vision = {**HALF, "hidden_size": 32, "image_size": 32, "patch_size": 8}
    # SigLIP projects nothing: both halves are of one width.
    text = {**HALF, "hidden_size": 32, "vocab_size": CLIP_VOCABULARY, "max_position_embeddings": 16}
    text |= {"eos_token_id": CLIP_VOCABULARY - 1, "bos_token_id": CLIP_VOCABULARY - 2}
    extra = {"projection_dim": 24} if kind == "CLIPModel" else {}
    model = model_class(model_class.config_class(vision_config=vision, text_config=text, **extra)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(CLIP_TOKENIZER))
    if kind == "SiglipModel":  # CLIP's own byte pairs are found without
        tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    encoder = build_from_file(weights, None, "auto", "", config)
    assert encoder.reads_text
    tower = build_text_from_file(weights, None, "auto", "", config, folders=TokenizerFolders(tmp_path, CLIP_TOKENIZER))
    tokens = tokenizer(PROMPT, padding="max_length", max_length=16, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=encoder.preprocess(IMAGES))
        got = cosine_similarity(encoder.embed(IMAGES), tower.embed(PROMPT))
        expected = (output.image_embeds @ output.text_embeds.T)[:, 0]
    record_property(f"difference from transformers' score, {kind}", float((got - expected).abs().max()))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_long_prompts_are_cut_as_the_library_cuts_them():
    import open_clip

    model = open_clip.CLIP(**OPEN_CLIP).eval()
    tower = build_text_from_file(model.state_dict(), described())
    assert tower.tokenize("fox " * 100).shape == (1, 16)
    assert torch.isfinite(tower.embed("fox " * 100)).all()


def test_the_gradient_of_the_prompts_score_equals_finite_differences(record_property):
    import open_clip

    model = open_clip.CLIP(**OPEN_CLIP).eval()
    encoder = build_from_file(model.state_dict(), described())
    reference = build_text_from_file(model.state_dict(), described()).embed(PROMPT).double()
    # In double precision: the module itself with its own preprocessing, without embed's rounding to single.
    encoder.module.double()

    def embed(images):
        return encoder.module(encoder.preprocess(images))

    objective = SimilarityObjective({"clip": embed}, [SimilarityTerm(CLIP_TEXT, "clip", reference, 0.7)])
    images = IMAGES.double()
    gradient, similarities = objective.gradient(images)
    assert set(similarities) == {CLIP_TEXT}
    worst = 0.0
    for seed in range(4):
        direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            change = (loss(objective, images + 1e-5 * direction) - loss(objective, images - 1e-5 * direction)) / 2e-5
        got = (gradient * direction).flatten(1).sum(1)
        worst = max(worst, float(((got - change).abs() / gradient.flatten(1).norm(dim=1)).max()))
    record_property("S_CLIP_text: relative error of the gradient", worst)
    assert worst < 1e-7


def test_files_without_a_text_half_read_nothing():
    import open_clip

    weights = open_clip.CLIP(**OPEN_CLIP).state_dict()
    visual = {key: value for key, value in weights.items() if key.startswith("visual.")}
    assert not build_from_file(visual, described()).reads_text
    assert not build_from_file(weights, described(), features="gram").reads_text
    assert not LIBRARIES["timm"].has_text(weights)


def test_text_halves_that_cannot_be_used_are_named(tmp_path):
    import open_clip
    import transformers

    weights = open_clip.CLIP(**OPEN_CLIP).state_dict()

    def text_cfg(**changes):
        return described(config={**OPEN_CLIP, "text_cfg": {**OPEN_CLIP["text_cfg"], **changes}})

    few = {**OPEN_CLIP, "text_cfg": {**OPEN_CLIP["text_cfg"], "vocab_size": 8}}
    config = transformers.CLIPConfig(text_config={**HALF, "hidden_size": 32, "vocab_size": 99}).to_dict()
    model = transformers.CLIPModel(transformers.CLIPConfig(**config)).state_dict()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    cases = [
        ((weights, text_cfg(hf_model_name="some/model")), {}, "would have to be downloaded"),
        ((weights, text_cfg(layers=3)), {}, r"missing are transformer\.resblocks\.2"),
        ((open_clip.CLIP(**few).state_dict(), described(config=few)), {}, "8 words only"),
        ((weights, text_cfg(hf_tokenizer_name="some/tokenizer")), {}, r"tokenizer\.json"),
        ((model, None, "transformers", "", config), {}, r"tokenizer\.json"),
        ((model, None, "transformers", "", config), {"beside": tmp_path / "broken"}, "in broken cannot be read"),
        ((model, None, "transformers", "", {"model_type": "dinov2"}), {}, "dinov2 models read no text"),
        ((weights, None, "timm"), {}, "timm models read no text"),
    ]
    for arguments, folders, message in cases:
        with pytest.raises(EncoderFileError, match=message) as caught:
            build_text_from_file(
                *arguments,
                file_name="pretty.safetensors",
                folders=dataclasses.replace(TokenizerFolders(clip=CLIP_TOKENIZER), **folders),
            )
        assert "pretty.safetensors" in str(caught.value)
