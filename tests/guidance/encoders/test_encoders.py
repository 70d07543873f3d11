"""Encoders rebuilt from files, against the library's own forward pass."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from lora_conductor.guidance.encoders import METADATA_KEY, EncoderFileError, build_from_file
from lora_conductor.guidance.preprocess import IMAGENET_MEAN, IMAGENET_STD

IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))

OPEN_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1},
}
TIMM = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def metadata(library, config, **changes):
    description = {"library": library, "role": "clip", "config": config, "image_size": 32}
    description |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], **changes}
    return {METADATA_KEY: json.dumps(description)}


@pytest.fixture(scope="module")
def open_clip_model():
    import open_clip

    return open_clip.CLIP(**OPEN_CLIP).eval()


@pytest.fixture(scope="module")
def timm_model():
    import timm

    return timm.create_model(TIMM["name"], num_classes=0, **TIMM["kwargs"]).eval()


def test_self_describing_open_clip_file(open_clip_model):
    weights = {k: v for k, v in open_clip_model.state_dict().items() if k.startswith("visual.")}
    encoder = build_from_file(weights, metadata("open_clip", OPEN_CLIP))
    assert encoder.preprocess.size == (32, 32)
    assert encoder.preprocess.mean == (0.4, 0.5, 0.6)
    expected = open_clip_model.encode_image(encoder.preprocess(IMAGES))
    torch.testing.assert_close(encoder.embed(IMAGES), expected)
    assert not any(p.requires_grad for p in encoder.module.parameters())


def test_self_describing_timm_file_in_half_precision(timm_model):
    weights = {k: v.half() for k, v in timm_model.state_dict().items()}
    encoder = build_from_file(weights, metadata("timm", TIMM))
    embedding = encoder.embed(IMAGES)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, timm_model(encoder.preprocess(IMAGES)), atol=2e-2, rtol=2e-2)


def test_whole_open_clip_checkpoint_by_name():
    import open_clip

    model = open_clip.create_model("ViT-S-32-alt", load_weights=False).eval()
    weights = {f"module.{k}": v for k, v in model.state_dict().items()}
    encoder = build_from_file(weights, None, "auto", "ViT-S-32-alt")
    torch.testing.assert_close(encoder.embed(IMAGES), model.encode_image(encoder.preprocess(IMAGES)))


def test_siglip_by_name_has_its_own_normalisation():
    import open_clip

    from lora_conductor.guidance.encoders.base import EncoderFile
    from lora_conductor.guidance.encoders.open_clip import build_open_clip

    name = "ViT-B-16-SigLIP"
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], OPEN_CLIP["text_cfg"])
        file = EncoderFile(model.state_dict(), "siglip.safetensors", name)
        assert build_open_clip(file).preprocess.mean == (0.5, 0.5, 0.5)


def test_timm_checkpoint_by_name_with_its_classifier():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    encoder = build_from_file(model.state_dict(), None, "auto", "vit_tiny_patch16_224.augreg_in21k")
    pixels = encoder.preprocess(IMAGES)
    expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(encoder.embed(IMAGES), expected)


@pytest.mark.parametrize(
    "name", ["CLIPModel", "CLIPVisionModelWithProjection", "SiglipModel", "Dinov2Model", "ViTModel"]
)
def test_transformers_model_folder(name, tmp_path):
    import transformers

    model_class = getattr(transformers, name)
    config_class = model_class.config_class
    if name in ("CLIPModel", "SiglipModel"):
        extra = {"projection_dim": 24} if name == "CLIPModel" else {}
        config = config_class(vision_config=VISION, text_config=TEXT, **extra)
    else:
        config = config_class(**VISION)
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    described = json.loads((tmp_path / "config.json").read_text())
    encoder = build_from_file(weights, None, "auto", "", described)
    pixels = encoder.preprocess(IMAGES)
    if hasattr(model, "get_image_features"):
        expected = model.get_image_features(pixel_values=pixels)
        expected = getattr(expected, "pooler_output", expected)
    else:
        outputs = model(pixel_values=pixels)
        expected = outputs.image_embeds if "image_embeds" in outputs else outputs.pooler_output
    torch.testing.assert_close(encoder.embed(IMAGES), expected)


def test_preprocessor_config_is_followed(tmp_path):
    import transformers

    model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION))
    model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    assert build_from_file(weights, None, "auto", "", described).preprocess.mean == IMAGENET_MEAN
    described["preprocessor"] = {"crop_size": {"height": 24, "width": 24}, "image_mean": [0.1, 0.2, 0.3]}
    preprocess = build_from_file(weights, None, "auto", "", described).preprocess
    assert (preprocess.size, preprocess.mean, preprocess.std) == ((24, 24), (0.1, 0.2, 0.3), IMAGENET_STD)


def test_files_that_do_not_fit_are_named(timm_model, open_clip_model):
    weights = timm_model.state_dict()
    visual = {k: v for k, v in open_clip_model.state_dict().items() if k.startswith("visual.")}
    other = {**TIMM, "kwargs": {**TIMM["kwargs"], "patch_size": 16}}
    deeper = {**TIMM, "kwargs": {**TIMM["kwargs"], "depth": 3}}
    lacking = {METADATA_KEY: json.dumps({"library": "timm", "config": TIMM})}
    cases = [
        ((weights, metadata("timm", deeper)), "missing are blocks.2"),
        ((weights, metadata("timm", other)), "in the file and .* in the model"),
        ((weights, None), "model_name"),
        ((weights, None, "timm", "no_such_model"), "no_such_model"),
        ((visual, None, "open_clip", "hf-hub:some/model"), "no model named"),
        ((weights, None, "transformers"), "config.json"),
        ((weights, None, "auto", "", {"model_type": "no-such-type"}), "no-such-type"),
        (({"a": torch.zeros(1)}, None), "which library"),
        ((weights, None, "jax"), "unknown library"),
        ((weights, {METADATA_KEY: "{"}), "not JSON"),
        ((weights, {METADATA_KEY: "[]"}), "not a JSON object"),
        ((weights, lacking), "lacks image_size, mean, std"),
    ]
    for arguments, message in cases:
        with pytest.raises(EncoderFileError, match=message) as caught:
            build_from_file(*arguments, file_name="pretty.safetensors")
        assert "pretty.safetensors" in str(caught.value)


@pytest.mark.parametrize(("library", "package"), [("open_clip", "open_clip_torch"), ("timm", "timm")])
def test_a_missing_library_is_named(library, package, monkeypatch, timm_model):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        build_from_file(timm_model.state_dict(), None, library, "x", file_name="x.safetensors")


def test_nothing_heavy_is_imported_before_it_is_needed():
    import subprocess

    code = (
        "import sys, lora_conductor.guidance.encoders as e, lora_conductor.guidance.corrections;"
        "assert not {'open_clip', 'timm', 'transformers', 'comfy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
