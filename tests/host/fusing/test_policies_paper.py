"""The paper's rule on the small world, against Eq. 9-13 (arXiv 2602.15539) computed densely in float64.

The reference shares nothing with the pack: hooks on the plain model's own modules, weights and files read as they are.
"""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.emoji.world.base import WIDTH
from benchmarks.emoji.world.small_world import SmallWorld
from lora_conductor.fusion.layers import whole_of
from lora_conductor.fusion.policies import Paper
from lora_conductor.host.fusing import fused, record_of_latent

from .. import tiny

STEPS, CFG = 8, 2.5


@pytest.fixture(scope="module")
def small():
    return SmallWorld()


@pytest.fixture(scope="module")
def paths(small):
    return {"subject": small.lora("subject", "fox"), "style": small.lora("style", "openmoji")}


def sample(small, model, steps=STEPS, cfg=CFG, seed=3):
    return tiny.sample(
        model,
        steps=steps,
        cfg=cfg,
        seed=seed,
        positive=small.prompt("fox", "openmoji"),
        negative=small.conditioning(["<null>"] * 4),
    )


def dense_deltas(path):
    """dW = alpha / rank * B A of every kohya entry, by the module's name with underscores."""
    file = {key: value.double() for key, value in load_file(path).items()}
    names = {key.split(".")[0] for key in file}
    return {
        name.removeprefix("lora_unet_"): file[f"{name}.alpha"]
        / file[f"{name}.lora_down.weight"].shape[0]
        * file[f"{name}.lora_up.weight"]
        @ file[f"{name}.lora_down.weight"]
        for name in names
    }


class DenseReference:
    """Forward hooks that replace each LoRA layer's output by Eq. 13's, and keep scores and choices of every call."""

    def __init__(self, model, subject, style):
        self.model, self.subject, self.style = model, subject, style
        self.calls = {}

    def __enter__(self):
        modules = {n.replace(".", "_"): m for n, m in self.model.model.diffusion_model.named_modules()}
        self.handles = [modules[name].register_forward_hook(self.hook(name)) for name in self.subject]
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    def hook(self, name):
        def forward(module, inputs, output):
            x, w0 = inputs[0].double(), module.weight.double()
            bias = 0 if module.bias is None else module.bias.double()
            base = x @ w0.T + bias
            adapted = [x @ (w0 + delta[name]).T + bias for delta in (self.subject, self.style)]  # Eq. 9, 10
            made = []
            for part, (start, stop) in parts_of(name, base.shape[-1]).items():
                own = [f[..., start:stop] for f in adapted]
                scores = [kl(f, base[..., start:stop]) for f in own]  # Eq. 11, 12
                wins = scores[0] >= scores[1]  # Eq. 13
                self.calls.setdefault(part, []).append((*scores, wins.double()))
                made.append(torch.where(wins.reshape(-1, *[1] * (base.ndim - 1)), *own))
            return torch.cat(made, -1).to(output.dtype)

        return forward

    def means(self, layers):
        """[subject score, style score, subject's share] x layer x step: means over the batch."""
        return torch.stack(
            [torch.stack([torch.stack([v.mean() for v in call]) for call in self.calls[n]], -1) for n in layers], 1
        )


def parts_of(name, width):
    """What is decided for itself: queries, keys and values, of FLUX's single blocks with the MLP's part after them."""
    if name.endswith("attn_qkv"):
        borders = [0, width // 3, 2 * width // 3, width]
    elif name.endswith("linear1"):
        borders = [0, WIDTH, 2 * WIDTH, 3 * WIDTH, width]
    else:
        return {name: (0, width)}
    return {f"{name}[{a}:{b}]": (a, b) for a, b in zip(borders, borders[1:], strict=False)}


def kl(adapted, base):
    """KL(softmax(adapted) || softmax(base)) over channels, mean over tokens; one value a sample."""
    p, q = adapted.softmax(-1), base.softmax(-1)
    return (p * (p / q).log()).sum(-1).flatten(1).mean(1)


def recorded(model, samples):
    record = record_of_latent(model, samples)
    names = [layer.removeprefix("diffusion_model.").replace(".", "_") for layer in record.layers]
    return record, names


def test_decisions_and_picture_equal_the_equations_in_float64(small, paths, record_property):
    routed = fused(small.model, **paths, policy=Paper())
    ours = sample(small, routed)
    record, names = recorded(routed, ours)
    with DenseReference(small.model, *(dense_deltas(path) for path in paths.values())) as reference:
        expected = sample(small, small.model)
    assert set(names) == set(reference.calls) and len(names) == 66
    assert {whole_of(name) for name in names} == set(reference.subject)
    values = reference.means(names)
    assert values.shape == (3, 66, STEPS)
    error = float(((record.scores - values[:2]).abs() / values[:2]).max())
    wrong = int((record.weights[0] != values[2]).sum())
    picture = tiny.relative(ours, expected)
    record_property("score, relative", error)
    record_property("picture", picture)
    share = float(values[2].mean())
    print(
        f"{wrong} of {values[2].numel()} decisions differ; scores within {error:.1e}, picture within {picture:.1e}; "
        f"the subject takes {share:.0%}"
    )
    assert 0.05 < share < 0.95
    assert wrong == 0 and error < 1e-3 and picture < 1e-4
    torch.testing.assert_close(record.weights.sum(0), torch.ones(66, STEPS, dtype=torch.float64))


def test_swapping_the_roles_swaps_the_decisions(small, paths):
    routed = fused(small.model, **paths, policy=Paper())
    swapped = fused(small.model, paths["style"], paths["subject"], Paper())
    one, two = sample(small, routed), sample(small, swapped)
    assert torch.equal(one, two)
    a, b = recorded(routed, one)[0], recorded(swapped, two)[0]
    assert a.layers == b.layers
    assert torch.equal(a.scores, b.scores.flip(0)) and torch.equal(a.weights, b.weights.flip(0))


def test_a_tie_goes_to_the_subject(small, paths):
    twice = fused(small.model, paths["style"], paths["style"], Paper())
    record, _ = recorded(twice, sample(small, twice, steps=1))
    assert (record.weights[0] == 1).all() and (record.weights[1] == 0).all()


def test_scores_grow_with_the_square_of_a_small_strength(small, paths, record_property):
    """Twice the strength, four times the score, in every layer."""
    scores = {}
    for strength in (0.005, 0.01):
        model = fused(small.model, (paths["subject"], strength), (paths["style"], strength), Paper())
        scores[strength] = recorded(model, sample(small, model, steps=1))[0].scores
    ratio = scores[0.01] / scores[0.005]
    record_property("deviation from 4", float((ratio - 4).abs().max()))
    assert ratio.shape == (2, 66, 1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0), rtol=0.02, atol=0)
