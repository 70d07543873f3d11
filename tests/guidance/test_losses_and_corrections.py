"""Losses and corrections on a tiny encoder and decoder, against central finite differences in fp64."""

import pytest
import torch

from lora_conductor.guidance.corrections import X0Correction, latent_gradient, rms
from lora_conductor.guidance.losses import (
    CLIP_CONTENT,
    CLIP_STYLE,
    CLIP_TEXT,
    DINO_CONTENT,
    DINO_STYLE,
    SimilarityObjective,
    SimilarityTerm,
    cosine_similarity,
)
from lora_conductor.guidance.preprocess import Preprocess, clamp_with_gradient

from .objectives import loss


class TinyWorld:
    """A decoder 4x8x8 -> 3x16x16 and two encoders, smooth and inside the displayable range."""

    def __init__(self, seed: int = 0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.decoder = torch.nn.Sequential(
                torch.nn.ConvTranspose2d(4, 8, 2, 2), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 3, padding=1)
            ).double()
            self.nets = {
                name: torch.nn.Sequential(torch.nn.Conv2d(3, 6, 4, 4), torch.nn.GELU(), torch.nn.Flatten()).double()
                for name in ("clip", "dino")
            }
            self.references = {name: torch.rand(2, 3, 20, 20, dtype=torch.float64) for name in ("content", "style")}
            self.x0 = torch.randn(2, 4, 8, 8, dtype=torch.float64)
            self.text = torch.randn(1, 6 * 3 * 3, dtype=torch.float64)  # as a text half would give it
        self.preprocess = Preprocess((12, 12))

    def decode(self, latents):
        return clamp_with_gradient(self.decoder(latents) * 0.1 + 0.5)

    def objective(self, *names: str) -> SimilarityObjective:
        embed = {key: lambda images, net=net: net(self.preprocess(images)) for key, net in self.nets.items()}
        terms = []
        for weight, name in enumerate(names, start=1):
            encoder, role = name.removeprefix("S_").lower().split("_")
            reference = self.text if role == "text" else embed[encoder](self.references[role]).detach()
            terms.append(SimilarityTerm(name, encoder, reference, weight / 4))
        return SimilarityObjective(embed, terms)


ALL = (CLIP_CONTENT, CLIP_STYLE, DINO_CONTENT, DINO_STYLE, CLIP_TEXT)


def finite_difference(function, x, direction, eps=1e-5):
    """Central difference of each sample's own value along `direction`, [B]."""
    with torch.no_grad():
        return (function(x + eps * direction) - function(x - eps * direction)) / (2 * eps)


@pytest.mark.parametrize("names", [(name,) for name in ALL] + [ALL])
def test_latent_gradient_equals_finite_differences(names, record_property):
    world = TinyWorld()
    objective = world.objective(*names)
    gradient, similarities = latent_gradient(world.x0, world.decode, objective)
    assert set(similarities) == set(names)
    worst = 0.0
    for seed in range(4):
        direction = torch.randn(world.x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        expected = finite_difference(lambda x: loss(objective, world.decode(x)), world.x0, direction)
        got = (gradient * direction).flatten(1).sum(1)
        worst = max(worst, float(((got - expected).abs() / gradient.flatten(1).norm(dim=1)).max()))
    record_property(f"{'+'.join(names)}: relative error of the gradient", worst)
    assert worst < 1e-7


def test_loss_is_eq_19_for_the_papers_terms():
    world = TinyWorld()
    objective = world.objective(CLIP_CONTENT, CLIP_STYLE, DINO_STYLE)
    paper = SimilarityObjective(
        objective.encoders, [SimilarityTerm(t.name, t.encoder, t.reference[:1], 1 / 3) for t in objective.terms]
    )
    images = world.decode(world.x0)
    expected = torch.ones(2, dtype=torch.float64)
    for term in paper.terms:
        embedding = objective.encoders[term.encoder](images)
        expected -= torch.nn.functional.cosine_similarity(embedding, term.reference) / 3
    torch.testing.assert_close(loss(paper, images), expected)


def test_several_references_count_on_average():
    a, b = torch.randn(3, 5), torch.randn(2, 5)
    expected = (cosine_similarity(a, b[:1]) + cosine_similarity(a, b[1:])) / 2
    torch.testing.assert_close(cosine_similarity(a, b), expected)


def test_correction_has_the_asked_size_and_lowers_the_loss():
    world = TinyWorld()
    objective = world.objective(*ALL)
    before = loss(objective, world.decode(world.x0))
    result = X0Correction(eta=0.05)(world.x0, world.decode, objective)
    torch.testing.assert_close(rms(result.x0 - world.x0), 0.05 * rms(world.x0))
    torch.testing.assert_close(result.displacement_rms, 0.05 * rms(world.x0))
    assert (loss(objective, world.decode(result.x0)) < before).all()
    assert not result.skipped.any()


def test_displacement_is_capped():
    world = TinyWorld()
    result = X0Correction(eta=5.0, max_displacement=0.1)(world.x0, world.decode, world.objective(*ALL))
    torch.testing.assert_close(result.displacement_rms, 0.1 * rms(world.x0))


def test_a_batch_gives_what_its_members_give_alone():
    world = TinyWorld()
    objective = world.objective(*ALL)
    correction = X0Correction(eta=0.1)
    together = correction(world.x0, world.decode, objective)
    for i in range(2):
        alone = correction(world.x0[i : i + 1], world.decode, objective)
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0)


@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_samples_without_a_usable_gradient_are_left_alone(poison):
    world = TinyWorld()

    def decode(latents):
        return world.decode(latents) * torch.tensor([1.0, poison], dtype=torch.float64).view(2, 1, 1, 1)

    # 0 * image is a constant: zero gradient; NaN and inf make it non-finite.
    result = X0Correction(eta=0.1)(world.x0, decode, world.objective(*ALL))
    assert result.skipped.tolist() == [False, True]
    assert torch.equal(result.x0[1], world.x0[1])
    assert not torch.equal(result.x0[0], world.x0[0])
    assert torch.isfinite(result.x0).all()
    assert result.displacement_rms[1] == 0.0


def test_half_precision_latents_keep_their_dtype():
    world = TinyWorld()
    half = world.x0.to(torch.bfloat16)
    result = X0Correction(eta=0.1)(half, lambda x: world.decode(x.double()), world.objective(*ALL))
    assert result.x0.dtype == torch.bfloat16
    assert result.gradient_rms.dtype == torch.float32


def test_bad_objectives_are_refused():
    term = SimilarityTerm(CLIP_CONTENT, "clip", torch.ones(1, 4), 1.0)
    with pytest.raises(ValueError, match="at least one"):
        SimilarityObjective({}, [])
    with pytest.raises(ValueError, match="'clip'"):
        SimilarityObjective({"dino": lambda x: x}, [term])
    with pytest.raises(ValueError, match="negative"):
        SimilarityObjective({"clip": lambda x: x}, [SimilarityTerm(CLIP_CONTENT, "clip", torch.ones(1, 4), -1.0)])
