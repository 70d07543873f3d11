"""The library's front door: files in any form, and what it refuses."""

import pytest
import torch

from lora_conductor.fusion.layers import Bases, layer
from lora_conductor.fusion.layers.basis import orthonormal
from lora_conductor.fusion.policies import KLSoft
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import attachment_of, fused, spec
from lora_conductor.host.loras import loras_on

from .. import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_flux()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder, shapes = tmp_path_factory.mktemp("loras"), tiny.layer_shapes(model)
    return [tiny.make_lora(folder / f"{name}.safetensors", shapes, seed=i) for i, name in enumerate("abc")]


def test_a_path_a_pair_or_several_of_either(model, files):
    a, b, c = files
    cases = [
        (fused(model), []),
        (fused(model, a), [("a", "subject", 1.0)]),
        (fused(model, style=str(a)), [("a", "style", 1.0)]),
        (fused(model, (a, 0.5), (b, -1)), [("a", "subject", 0.5), ("b", "style", -1.0)]),
        (fused(model, (a, b), [c]), [("a", "subject", 1.0), ("b", "subject", 1.0), ("c", "style", 1.0)]),
        (fused(model, [a, (b, 0.3)], (c, 0)), [("a", "subject", 1.0), ("b", "subject", 0.3)]),
        (fused(fused(model, a), style=(b, 0.7)), [("a", "subject", 1.0), ("b", "style", 0.7)]),
    ]
    for made, expected in cases:
        names = [(lora.name.removesuffix(".safetensors"), lora.role, lora.strength) for lora in loras_on(made)]
        assert names == expected
    assert not loras_on(model)


def test_policy_and_settings_are_kept_or_set(model, files):
    first = fused(model, files[0], policy=KLSoft(0.4), refinement=Refinement(smoothing=0.5))
    second = fused(first, style=files[1])
    for made in (first, second):
        its = attachment_of(made).spec
        assert (its.policy, its.refinement) == (KLSoft(0.4), Refinement(smoothing=0.5))


def test_a_strength_is_turned_without_looking_for_bases_again(model, files, tmp_path, monkeypatch):
    """The layers are those of a first loading all the same, bit for bit; another file of the same name is another."""
    a, b, _ = files
    fused(model, a, b)
    looked = []
    monkeypatch.setattr(layer, "orthonormal", lambda *args: looked.append(1) or orthonormal(*args))
    again = fused(model, (a, -0.4), (b, 1.7))
    assert not looked
    monkeypatch.setattr(spec, "BASES", Bases(0))
    anew = fused(model, (a, -0.4), (b, 1.7))
    assert looked
    for one, other in zip(attachment_of(again).spec.layers, attachment_of(anew).spec.layers, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
        assert [s.pairing for s in one.segments] == [s.pairing for s in other.segments]
    assert torch.equal(tiny.sample(again), tiny.sample(anew))
    monkeypatch.undo()
    same_name = tiny.make_lora(tmp_path / a.name, tiny.layer_shapes(model), seed=7)
    monkeypatch.setattr(layer, "orthonormal", lambda *args: looked.append(1) or orthonormal(*args))
    looked.clear()
    fused(model, same_name, b)
    assert looked


def test_files_that_cannot_be_applied_are_named_and_the_model_is_as_it_was(model, files, tmp_path):
    plain = tiny.sample(model)
    other = tiny.make_lora(tmp_path / "other.safetensors", tiny.layer_shapes(tiny.tiny_unet()), seed=1)
    for path, error in (
        (other, r"'other\.safetensors' does not fit this model"),
        (tmp_path / "gone.safetensors", "gone"),
    ):
        with pytest.raises(ConductorError, match=error):
            fused(model, files[0], path)
    assert not loras_on(model) and torch.equal(tiny.sample(model), plain)
