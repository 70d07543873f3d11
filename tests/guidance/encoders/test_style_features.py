"""CSD's heads and Gram features, against their definitions on the library's own networks."""

import pytest
import torch

from lora_conductor.guidance.encoders import EncoderFileError, build_from_file
from lora_conductor.guidance.encoders.gram import GramFeatures
from lora_conductor.guidance.losses import cosine_similarity

from .test_encoders import IMAGES, OPEN_CLIP, TIMM, metadata, open_clip_model, timm_model  # noqa: F401 - fixtures


def csd_weights(model):
    generator = torch.Generator().manual_seed(0)
    backbone = {f"module.backbone.{k}": v for k, v in model.visual.state_dict().items() if k != "proj"}
    heads = {f"module.last_layer_{k}": torch.randn(32, 24, generator=generator) for k in ("style", "content")}
    return {"model_state_dict": {**backbone, **heads}}, heads


@pytest.mark.parametrize("head", ["style", "content"])
def test_csd_is_the_unprojected_tower_times_its_head(open_clip_model, head):  # noqa: F811
    weights, heads = csd_weights(open_clip_model)
    features = "embedding" if head == "style" else "content head"
    encoder = build_from_file(weights, metadata("csd", OPEN_CLIP), features=features)
    visual = open_clip_model.visual
    proj, visual.proj = visual.proj, None
    expected = visual(encoder.preprocess(IMAGES)) @ heads[f"module.last_layer_{head}"]
    visual.proj = proj
    torch.testing.assert_close(encoder.embed(IMAGES), expected)


def test_gram_features_of_a_vit(timm_model):  # noqa: F811
    encoder = build_from_file(timm_model.state_dict(), metadata("timm", TIMM), features="gram")
    captured = []
    hook = timm_model.blocks[1].register_forward_hook(lambda module, inputs, output: captured.append(output))
    timm_model(encoder.preprocess(IMAGES))
    hook.remove()
    patches = captured[0][:, 1:]  # 4 x 4 patches after the class token
    expected = torch.einsum("bnc,bnd->bcd", patches, patches).flatten(1) / 16
    torch.testing.assert_close(encoder.embed(IMAGES), expected)


def test_gram_features_forget_where_things_are():
    """Moving a texture about changes its Gram matrix less than another texture does; here for a convolution."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer1 = torch.nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.layer1(x).mean(dim=(2, 3))

    gram = GramFeatures(Net())
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    moved = images.flip(-1).roll(3, -2)
    torch.testing.assert_close(gram(moved), gram(images))
    red = images * torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        assert float(cosine_similarity(gram(red), gram(images))) < 0.95


def test_gradients_reach_the_picture(open_clip_model, timm_model):  # noqa: F811
    weights, _ = csd_weights(open_clip_model)
    visual = {k: v for k, v in open_clip_model.state_dict().items() if k.startswith("visual.")}
    for encoder in (
        build_from_file(weights, metadata("csd", OPEN_CLIP)),
        build_from_file(visual, metadata("open_clip", OPEN_CLIP), features="gram"),
        build_from_file(timm_model.state_dict(), metadata("timm", TIMM), features="gram"),
    ):
        encoder.module.double()
        leaf = IMAGES[:1].double().requires_grad_(True)
        direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

        def value(x, encoder=encoder):
            return encoder.module(encoder.preprocess(x)).square().sum()

        (gradient,) = torch.autograd.grad(value(leaf), leaf)
        with torch.no_grad():
            expected = (value(leaf + 1e-6 * direction) - value(leaf - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_named(timm_model, open_clip_model):  # noqa: F811
    weights, _ = csd_weights(open_clip_model)
    inner = weights["model_state_dict"]
    cases = [
        ((timm_model.state_dict(), metadata("timm", TIMM)), "content head", "only csd has a content head"),
        ((timm_model.state_dict(), metadata("timm", TIMM)), "smell", "unknown features 'smell'"),
        (
            ({k: v for k, v in inner.items() if "content" not in k}, metadata("csd", OPEN_CLIP)),
            "embedding",
            "last_layer_content",
        ),
        (
            ({k: v for k, v in inner.items() if "conv1" not in k}, metadata("csd", OPEN_CLIP)),
            "embedding",
            "CSD's backbone",
        ),
    ]
    for arguments, features, message in cases:
        with pytest.raises(EncoderFileError, match=message):
            build_from_file(*arguments, file_name="pretty.safetensors", features=features)
