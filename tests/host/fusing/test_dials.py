"""Strengths as dials: each LoRA's own share grows with its strength, from core's picture without it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.policies import Balanced, Energy, KLSoft, Paper, Sum
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.fusing import fused
from lora_conductor.host.fusing.attach import attachment_of

from .. import adapter_files, tiny

DIAL = (0.02, 0.25, 0.5, 1.0, 1.5, 2.0)
POLICIES = {
    "recommended": (Balanced(), Refinement()),
    "recommended, emphasis 3": (Balanced(), Refinement(emphasis=3.0)),
    "recommended, granularity head": (Balanced(), Refinement(granularity="head")),
    "recommended, granularity token": (Balanced(), Refinement(granularity="token")),
    "sum": (Sum(), Refinement()),
    "paper": (Paper(), Refinement()),
    "energy, even_out": (Energy(), Refinement(even_out=1.0)),
    "kl_soft": (KLSoft(), Refinement()),
}


@pytest.fixture(scope="module", params=[tiny.world_flux, tiny.tiny_unet], ids=["flux", "unet"])
def setting(request, tmp_path_factory):
    """A model, and two files and a third that move it about as far as real ones: .1 to .3 of the range."""
    model, folder = request.param(), tmp_path_factory.mktemp("loras")
    shapes = tiny.layer_shapes(model)
    size = 0.08 if request.param is tiny.world_flux else 0.15
    files = [tiny.make_lora(folder / f"{i}.safetensors", shapes, seed=i, size=size) for i in range(3)]
    return model, files, shapes


def picture(model, *loras, policy="recommended", cfg=4.0):
    """Of LoRAs ``(role, file, strength)``; by core where one role is off, unless the user set an emphasis."""
    on = [lora for lora in loras if lora[2]]
    if len({role for role, _, _ in on}) < 2 and not POLICIES[policy][1].emphasis:
        return tiny.sample(tiny.core_stacked(model, *((file, s) for _, file, s in on)), steps=2, cfg=cfg)
    files = ([(file, s) for its, file, s in on if its == role] for role in ("subject", "style"))
    return tiny.sample(fused(model, *files, *POLICIES[policy]), steps=2, cfg=cfg)


def away(one, other):
    return float((one - other).square().mean().sqrt())


@pytest.mark.parametrize(("policy", "cfg"), [("recommended", 1.0), *((policy, 4.0) for policy in POLICIES)])
@pytest.mark.parametrize("turned", ["subject", "style", "second style"])
def test_at_nothing_it_is_core_without_that_lora(setting, policy, turned, cfg):
    model, files, _ = setting
    loras = {"subject": ("subject", files[0], 0.9), "style": ("style", files[1], 0.8)}
    if turned == "second style":
        loras[turned] = ("style", files[2], 0.8)
    role, file, _ = loras.pop(turned)
    without = picture(model, *loras.values(), policy=policy, cfg=cfg)
    faint = picture(model, *loras.values(), (role, file, 1e-4), policy=policy, cfg=cfg)
    assert tiny.relative(faint, without) < 1e-3


@pytest.mark.parametrize(
    ("policy", "cfg"),
    [("recommended", 1.0), *((policy, 4.0) for policy in POLICIES if policy.startswith("recommended"))],
)
@pytest.mark.parametrize("turned", ["subject", "style", "second style"])
def test_more_is_more(setting, policy, turned, cfg, record_property):
    model, files, _ = setting
    loras = {"subject": ("subject", files[0], 1.0), "style": ("style", files[1], 1.0)}
    if turned == "second style":
        loras[turned] = ("style", files[2], 1.0)
    role, file, _ = loras.pop(turned)
    without = picture(model, *loras.values(), policy=policy, cfg=cfg)
    found = [away(picture(model, *loras.values(), (role, file, s), policy=policy, cfg=cfg), without) for s in DIAL]
    record_property("at .02 of that at 1", found[0] / found[3])
    assert found[0] < 0.15 * found[3]
    assert found == sorted(found)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("role", ["subject", "style"])
def test_below_zero_it_turns_around(setting, role, cfg):
    """What its sign changes is what it changes in the plain sum."""
    model, files, _ = setting
    other = ("style" if role == "subject" else "subject", files[1], 1.0)

    def turned(policy):
        ahead, back = (picture(model, (role, files[0], s), other, policy=policy, cfg=cfg) for s in (0.1, -0.1))
        return (ahead - back).flatten()

    assert torch.cosine_similarity(turned("recommended"), turned("sum"), dim=0) > 0.9


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("times", [0.5, 2.0, 4.0])
def test_how_loud_a_file_was_made_is_evened_out_and_a_strength_is_not(setting, times, cfg, tmp_path):
    model, files, _ = setting
    scaled = {key: value * (times if "up" in key else 1) for key, value in load_file(files[1]).items()}
    save_file(scaled, tmp_path / "louder.safetensors")
    subject = ("subject", files[0], 1.0)
    as_made = picture(model, subject, ("style", files[1], 1.0), cfg=cfg)
    louder = picture(model, subject, ("style", tmp_path / "louder.safetensors", 1.0), cfg=cfg)
    turned = picture(model, subject, ("style", files[1], times), cfg=cfg)
    summed, both = (picture(model, subject, ("style", files[1], s), policy="sum", cfg=cfg) for s in (times, 1.0))
    # A file that is too faint holds the other one back: nobody can know which of the two is as it should be.
    assert away(louder, as_made) < (0.67 if times > 1 else 0.9) * away(summed, both)
    if times > 1:
        assert away(louder, as_made) < 0.67 * away(turned, as_made)


def pruned(file, target, keys, factor):
    """A file with what it has for some keys multiplied; left out where the factor is None."""
    tensors = {}
    for key, value in load_file(file).items():
        chosen = any(part in key for part in keys)
        if chosen and factor is None:
            continue
        first = any(key.endswith(end) for end in ("lora_up.weight", "lokr_w1", "diff", "hada_w1_a"))
        tensors[key] = value * factor if chosen and first else value
    save_file(tensors, target)
    return target


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        *(("recommended", kind) for kind in ("lora", "lokr", "loha", "diff")),
        ("paper", "lora"),
        ("energy, even_out", "lokr"),
    ],
)
def test_a_zero_layer_is_one_that_the_file_does_not_have(setting, policy, kind, tmp_path):
    model, files, shapes = setting
    file = adapter_files.make_file(tmp_path / "style.safetensors", kind, shapes, 1, 0.1)
    names = sorted(
        {key.rsplit(".", 1)[0].removesuffix(".lora_up").removesuffix(".lora_down") for key in load_file(file)}
    )
    some = names[::2]
    absent, zero, faint = (
        picture(
            model,
            ("subject", files[0], 1.0),
            ("style", pruned(file, tmp_path / f"{factor}.safetensors", some, factor), 1.0),
            policy=policy,
        )
        for factor in (None, 0.0, 1e-3)
    )
    assert tiny.relative(zero, absent) < 1e-5
    if policy != "energy, even_out":  # whose mean is over all layers that the file has
        assert tiny.relative(faint, absent) < 0.02


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("role", ["subject", "style"])
def test_a_file_of_zeros_is_no_file(setting, policy, role, tmp_path):
    model, files, _ = setting
    zeros = {key: value * 0 if "up" in key else value for key, value in load_file(files[1]).items()}
    save_file(zeros, tmp_path / "zeros.safetensors")
    other = ("style" if role == "subject" else "subject", files[0], 0.8)
    made = picture(model, other, (role, tmp_path / "zeros.safetensors", 1.0), policy=policy)
    assert tiny.relative(made, picture(model, other, policy=policy)) < 1e-5


def test_alpha_0_is_zero(setting, tmp_path):
    model, files, _ = setting
    silent = load_file(files[1])
    silent |= {key.replace("lora_up.weight", "alpha"): torch.tensor(0.0) for key in silent if "lora_up.weight" in key}
    save_file(silent, tmp_path / "silent.safetensors")
    made = fused(model, (files[0], 0.8), tmp_path / "silent.safetensors")
    assert not attachment_of(made).spec.shared_layers
    other = picture(model, ("subject", files[0], 0.8))
    assert tiny.relative(tiny.sample(made, steps=2, cfg=4.0), other) < 1e-5
