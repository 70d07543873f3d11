"""The options of x0 guidance, the guard, and Eq. 20 as an edit of the prediction."""

import math

import pytest
import torch

from lora_conductor.guidance.corrections import X0Correction, latent_gradient, rms
from lora_conductor.guidance.guard import HeldOutGuard
from lora_conductor.guidance.losses import CLIP_STYLE, HELD_OUT, SimilarityObjective, SimilarityTerm
from lora_conductor.guidance.moments import Moments
from lora_conductor.guidance.paper import PaperCorrection
from lora_conductor.guidance.views import Views

from .objectives import loss
from .test_losses_and_corrections import ALL, TinyWorld, finite_difference


def one_sample():
    world = TinyWorld()
    return world, world.x0[:1], world.objective(*ALL)


def test_inner_steps_are_gradient_steps_in_a_row_and_the_cap_binds_them_together():
    world, x0, objective = one_sample()
    by_hand = x0.clone()
    for _ in range(4):
        gradient, _ = latent_gradient(by_hand, world.decode, objective)
        by_hand = by_hand - 0.05 * rms(x0) * gradient / rms(gradient)
    result = X0Correction(eta=0.05, inner_steps=4)(x0, world.decode, objective)
    torch.testing.assert_close(result.x0, by_hand)
    capped = X0Correction(eta=0.05, inner_steps=4, max_displacement=0.06)(x0, world.decode, objective)
    assert float(result.displacement_rms / rms(x0)) > 0.06
    torch.testing.assert_close(capped.displacement_rms, 0.06 * rms(x0))


def test_the_anchor_is_the_gradient_of_its_term():
    """With anchor lam the step follows R + lam * mean((x - x0)^2) / mean(x0^2), here by automatic differentiation."""
    world, x0, objective = one_sample()
    lam, by_hand = 3.0, x0.clone()
    for _ in range(3):
        leaf = by_hand.clone().requires_grad_(True)
        term = (leaf - x0).square().mean() / x0.square().mean()
        (gradient,) = torch.autograd.grad(loss(objective, world.decode(leaf)).sum() + lam * term, leaf)
        by_hand = by_hand - 0.1 * rms(x0) * gradient / rms(gradient)
    result = X0Correction(eta=0.1, inner_steps=3, anchor=lam)(x0, world.decode, objective)
    torch.testing.assert_close(result.x0, by_hand)


def test_moments_are_adams(betas=(0.5, 0.9)):
    leaf = torch.zeros(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([leaf], lr=1.0, betas=betas, eps=1e-12)
    moments = Moments(betas)
    generator = torch.Generator().manual_seed(0)
    position = torch.zeros_like(leaf)
    for _ in range(5):
        gradient = torch.randn(leaf.shape, generator=generator, dtype=torch.float64) * 1e-6
        leaf.grad = gradient.clone()
        adam.step()
        position = position - moments.direction(gradient)
    torch.testing.assert_close(position, leaf.detach(), rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="betas"):
        Moments((1.0, 0.5))


def test_moments_are_carried_from_call_to_call_and_are_one_samples_own():
    world, x0, objective = one_sample()
    correction = X0Correction(eta=0.1, betas=(0.5, 0.9))
    state = correction.start()
    first = correction(x0, world.decode, objective, state)
    again = correction(x0, world.decode, objective, state)
    fresh = correction(x0, world.decode, objective, correction.start())
    torch.testing.assert_close(fresh.x0, first.x0)
    other = correction(world.x0[1:], world.decode, objective, state)
    assert not torch.allclose(other.x0, correction(world.x0[1:], world.decode, objective).x0)
    torch.testing.assert_close(again.displacement_rms, first.displacement_rms)  # the same gradient again


def test_views_show_the_whole_and_crops_and_mirror_images():
    images = torch.linspace(0, 1, 3 * 16 * 12).view(1, 3, 16, 12)
    views = Views(crops=9)(images, torch.Generator().manual_seed(0))
    assert views.shape == (10, 3, 16, 12)
    assert torch.equal(views[:1], images)
    rising = (views[:, :, :, -1] > views[:, :, :, 0]).flatten(1).all(1)
    assert rising[0] and 0 < int(rising[1:].sum()) < 9
    assert Views()(images, torch.Generator()) is images
    assert torch.equal(views, Views(crops=9)(images, torch.Generator().manual_seed(0)))


def test_gradient_over_views_equals_finite_differences():
    world = TinyWorld()
    objective = world.objective(*ALL)

    def seen(images):
        return Views(crops=3)(images, torch.Generator().manual_seed(5))

    def mean_loss(x):
        return loss(objective, seen(world.decode(x))).view(4, -1).mean(0)

    gradient, similarities = latent_gradient(world.x0, world.decode, objective, seen)
    direction = torch.randn(world.x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = finite_difference(mean_loss, world.x0, direction)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), expected, rtol=1e-6, atol=1e-9)
    whole = objective.similarities(world.decode(world.x0))
    for name, value in similarities.items():
        torch.testing.assert_close(value, whole[name])


def test_watching_encoders_do_not_guide():
    world, x0, objective = one_sample()
    term = objective.terms[0]
    watching = SimilarityTerm(HELD_OUT["style"], "watch", term.reference, 0.0)
    calls = []

    def watch(images):
        calls.append(torch.is_grad_enabled())
        return objective.encoders[term.encoder](images)

    both = SimilarityObjective({**objective.encoders, "watch": watch}, [*objective.terms, watching])
    expected, _ = latent_gradient(x0, world.decode, objective)
    got, similarities = latent_gradient(x0, world.decode, both)
    assert torch.equal(got, expected) and calls == [False]
    torch.testing.assert_close(similarities[HELD_OUT["style"]], similarities[term.name])


def test_the_guard_stops_after_two_falls_in_a_row():
    guard = HeldOutGuard()
    for value in (0.5, 0.4, 0.45, 0.44, math.nan):
        guard.watch(value)
        assert not guard.stopped
    guard.watch(0.43)
    assert guard.stopped
    guard.watch(0.9)
    assert guard.stopped


@pytest.mark.parametrize("vp", [False, True])
def test_eq_20_after_an_euler_step(vp):
    world, x, objective = one_sample()
    mix = torch.randn(x.shape[1], x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 2
    sigma, following, m = 3.0, 1.0, 7.0

    def denoise(noisy):
        return torch.tanh(torch.einsum("bchw,cd->bdhw", noisy, mix)) + 0.1 * noisy

    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(objective, world.decode(denoise(leaf))).sum(), leaf)
    plain = x + (x - denoise(x)) / sigma * (following - sigma)
    expected = plain - m * (math.sqrt((1 + sigma**2) * (1 + following**2)) if vp else 1.0) * gradient
    result = PaperCorrection(m, vp)(x, denoise, world.decode, objective, sigma, following)
    torch.testing.assert_close(x + (x - result.x0) / sigma * (following - sigma), expected)
    torch.testing.assert_close(result.gradient_rms, rms(gradient))
    assert set(result.similarities) == set(ALL)


def test_eq_20_leaves_samples_without_a_usable_gradient_alone():
    world = TinyWorld()
    poison = torch.tensor([1.0, float("nan")], dtype=torch.float64).view(2, 1, 1, 1)
    result = PaperCorrection()(
        world.x0, lambda x: x, lambda z: world.decode(z) * poison, world.objective(CLIP_STYLE), 2.0, 1.0
    )
    assert result.skipped.tolist() == [False, True]
    assert torch.equal(result.x0[1], world.x0[1]) and torch.isfinite(result.x0).all()
