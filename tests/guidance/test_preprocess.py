import pytest
import torch
import torch.nn.functional as F

from lora_conductor.guidance.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, clamp_with_gradient


def test_clamp_lets_gradients_lead_back_inside_only():
    x = torch.tensor([-0.5, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    for sign, expected in ((1.0, [0.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, 0.0])):
        (grad,) = torch.autograd.grad(sign * clamp_with_gradient(x).sum(), x)
        assert grad.tolist() == expected
    assert clamp_with_gradient(x).tolist() == [0.0, 0.5, 1.0]


def test_rounding_at_the_edge_of_the_range_hardly_changes_gradients():
    for edge, outward in ((1.0, -1.0), (0.0, 1.0)):
        x = torch.tensor([edge - 1e-6, edge, edge + 1e-6], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(outward * clamp_with_gradient(x).sum(), x)
        torch.testing.assert_close(grad, torch.full_like(grad, outward), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (32, 32), (17, 64)])
def test_matches_the_usual_recipe_without_its_rounding(shape):
    images = torch.rand(2, 3, *shape)
    scale = 32 / min(shape)
    resized = F.interpolate(
        images, size=(round(scale * shape[0]), round(scale * shape[1])), mode="bicubic", antialias=True
    )
    top, left = (resized.shape[2] - 32) // 2, (resized.shape[3] - 32) // 2
    expected = (resized if shape != (32, 32) else images)[:, :, top : top + 32, left : left + 32].clamp(0, 1)
    expected = (expected - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    torch.testing.assert_close(Preprocess((32, 32))(images), expected)


@pytest.mark.parametrize("crop", [True, False])
def test_gradient_equals_finite_differences(crop):
    preprocess = Preprocess((9, 9), crop=crop)
    images = (torch.rand(1, 3, 12, 14, dtype=torch.float64) * 0.6 + 0.2).requires_grad_(True)
    assert torch.autograd.gradcheck(preprocess, (images,))


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\].*\[1, 8, 8, 3\]"):
        Preprocess((8, 8))(torch.zeros(1, 8, 8, 3))
