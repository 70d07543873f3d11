"""More than two LoRAs: stacks of other packs in and out, and roles of several LoRAs."""

import json
from pathlib import Path

import numpy as np
import pytest

from comfy_server import ComfyServer, WorkflowError
from host_base import make_base
from lora_conductor.fusion.policies import KLSoft
from lora_conductor.fusion.routing.refinement import Refinement
from lora_conductor.host.core.errors import ConductorError
from lora_conductor.host.core.modules import find_module
from lora_conductor.host.fusing import fused
from lora_conductor.host.fusing.results import record_of_latent
from lora_conductor.host.loras.choices import LoraChoice, choices_of_stack, stack_of
from lora_conductor.host.loras.file import read_lora
from lora_conductor.host.loras.patches import model_patches
from repo_paths import link

from .. import tiny
from ..workflows import STYLE, SUBJECT, latent, loader, node, router, run, sampled, stock, world

SUNFLOWER, ALIEN = "lora_subject_sunflower.safetensors", "lora_subject_alien.safetensors"
CONTRAST = "lora_style_fluent-emoji-high-contrast.safetensors"


@pytest.fixture(scope="module")
def comfy(host, tmp_path_factory):
    """A running ComfyUI with a second node pack that knows stacks."""
    base = make_base(tmp_path_factory.mktemp("stacks"))
    link(Path(__file__).with_name("stack_nodes"), base / "custom_nodes" / "stack_nodes")
    with ComfyServer(host.path, base) as running:
        yield running


def stack(*entries):
    return node("MakeStack", stack=json.dumps(entries))


def with_stacks(**more):
    """The loader with its two LoRAs at 0.4 and 0.5, and stacks beside them."""
    one = loader(subject_strength=0.4, style_strength=0.5)
    one["inputs"] |= more
    return one


@pytest.mark.parametrize("count", [3, 4])
def test_more_loras_add_up_to_cores_stacked_loaders(comfy, record_property, count):
    entries = {"subject_stack": [[SUNFLOWER, 0.3, 1.0], ["None", 1.0, 1.0]], "style_stack": [[CONTRAST, -0.2, 0.5]]}
    if count == 3:
        del entries["style_stack"]
    graph = world(
        **{name: stack(*value) for name, value in entries.items()},
        dual=with_stacks(**{name: [name, 0] for name in entries}),
        summed=router("sum"),
        again=node("ApplyStack", model=["model", 0], lora_stack=["dual", 3]),
        text=node("PreviewAny", source=["dual", 3]),
        core1=stock("model", SUBJECT, 0.4),
        core2=stock("core1", STYLE, 0.5),
        core3=stock("core2", SUNFLOWER, 0.3),
        core4=stock("core3", CONTRAST, -0.2),
        **sampled("ours", "summed"),
        **sampled("again", "again"),
        **sampled("core", f"core{count}"),
        **sampled("two", "core2"),
    )
    outputs = run(comfy, graph)
    latents = {name: latent(comfy, outputs, name) for name in ("ours", "again", "core", "two")}
    error = tiny.relative(latents["ours"], latents["core"])
    record_property(f"{count} LoRAs, sum", error)
    assert error < 1e-4 and tiny.relative(latents["again"], latents["core"]) < 1e-4
    assert tiny.relative(latents["two"], latents["core"]) > 1e-2
    names = [SUBJECT, SUNFLOWER, STYLE, CONTRAST][:count]
    (text,) = outputs["text"]["text"]
    positions = [text.index(name) for name in names]
    assert positions == sorted(positions) and "None" not in text


def test_stacks_are_the_same_as_chained_loaders(comfy):
    first = loader(subject=SUNFLOWER, style="None", subject_strength=0.3)
    graph = world(
        stack=stack([SUNFLOWER, 0.3, 1.0]),
        dual=with_stacks(subject_stack=["stack", 0]),
        first=loader(subject_strength=0.4, style_strength=0.5),
        chained=first | {"inputs": first["inputs"] | {"model": ["first", 0]}},
        **sampled("stacked", "dual", report=True),
        **sampled("chained", "chained", report=True),
        **sampled("two", "first"),
    )
    outputs = run(comfy, graph)
    stacked, chained, two = (latent(comfy, outputs, name) for name in ("stacked", "chained", "two"))
    assert tiny.relative(stacked, chained) < 1e-5 and tiny.relative(two, chained) > 1e-3


def test_a_stack_alone(comfy):
    graph = world(
        stack=stack([SUBJECT, 0.7, 1.0]),
        dual=loader(subject="None", style="None"),
        core=stock("model", SUBJECT, 0.7),
        **sampled("ours", "dual"),
        **sampled("core", "core"),
    )
    graph["dual"]["inputs"]["subject_stack"] = ["stack", 0]
    outputs = run(comfy, graph)
    assert tiny.relative(latent(comfy, outputs, "ours"), latent(comfy, outputs, "core")) < 1e-4


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([[SUBJECT, 1.0, 1.0], ["gone.safetensors", 1.0, 1.0]], "style_stack, entry 2: .*gone.* is not in"),
        ([[SUBJECT, 1.0]], r"style_stack, entry 1: .*\(LoRA name, model strength, clip strength\)"),
    ],
)
def test_bad_stacks_are_named_before_sampling(comfy, entries, said):
    graph = world(stack=stack(*entries), dual=with_stacks(style_stack=["stack", 0]), **sampled("a", "dual"))
    with pytest.raises(WorkflowError, match=said):
        run(comfy, graph)


@pytest.mark.parametrize(
    "entry",
    ["x.safetensors", ("x", "1", 1.0), (1, 1.0, 1.0), ("x", float("nan"), 1.0), ("x", 1.0, True), ("x", 1.0, 1.0, 1.0)],
    ids=str,
)
def test_bad_entries(entry):
    with pytest.raises(ConductorError, match="subject_stack, entry 2"):
        choices_of_stack([("good", 1, 1.0), entry], "subject", "subject_stack")


def test_no_stack_at_all():
    assert choices_of_stack(None, "style", "style_stack") == []
    with pytest.raises(ConductorError, match="style_stack: a dict is no LORA_STACK"):
        choices_of_stack({}, "style", "style_stack")


def test_what_was_not_applied_is_not_handed_on():
    choices = [LoraChoice("None", "subject", 1.0, 1.0), LoraChoice("off", "subject", 0.0, 0.0)]
    assert stack_of([*choices, LoraChoice("text only", "style", 0.0, 0.5)]) == [("text only", 0.0, 0.5)]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(base, delta):
    """``KL(softmax(F + h) || softmax(F))`` over channels, mean over tokens."""
    p, q = softmax(base), softmax(base + delta)
    return (q * (np.log(q) - np.log(p))).sum(-1).mean()


def half_variance(base, delta):
    p = softmax(base)
    return 0.5 * ((p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2).mean()


@pytest.mark.parametrize("score", [kl, half_variance])
def test_two_subjects_are_one_branch_of_a_soft_policy(tmp_path, record_property, score):
    """One layer by hand in float64: the deltas of a role add up before they are scored and weighed."""
    model = tiny.world_flux()
    key = next(k for k in tiny.layer_shapes(model) if "img_mlp.0" in k)
    files, dense = {"subject": [], "style": []}, {}
    for i, (role, strength) in enumerate((("subject", 0.8), ("style", 0.7), ("subject", 0.5))):
        path = tmp_path / f"{i}.safetensors"
        tiny.make_lora(path, {key: tiny.layer_shapes(model)[key]}, rank=2 + i, seed=i, size=0.4)
        files[role].append((path, strength))
        (delta,) = model_patches(read_lora(path.name, str(path)), model).routed.values()
        dense[role] = dense.get(role, 0.0) + strength * delta.dense().numpy()
    policy = KLSoft(temperature=0.7, tokens=0, score_name=score.__name__)
    routed = fused(model, **files, policy=policy, refinement=Refinement(lean=0.3))
    module, seen = find_module(model.model, key.removesuffix(".weight")), []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output.clone())))
    made = tiny.sample(routed)
    hook.remove()
    ((x, output),) = ((x.double().numpy(), output.double().numpy()) for x, output in seen)
    weight, bias = (value.detach().double().numpy() for value in (module.weight, module.bias))
    base = x @ weight.T + bias
    h = {role: x @ delta.T for role, delta in dense.items()}
    log_ratio = np.log(score(base, h["subject"])) - np.log(score(base, h["style"]))
    subject = 1 / (1 + np.exp(-(log_ratio + 0.3) / 0.7))
    truth = base + subject * h["subject"] + (1 - subject) * h["style"]
    error = float(np.abs(output - truth).max() / np.ptp(truth))
    record_property(f"two subjects and a style, {score.__name__}", error)
    weights = record_of_latent(routed, made).weights[:, 0, 0]
    assert error < 1e-5 and weights.tolist() == pytest.approx([subject, 1 - subject], abs=1e-5)
    assert 0.05 < subject < 0.95 and np.abs(output - base).max() > 0.1
