"""Baked files: everything of the parents is in them or named, the header says what they are, bad wishes say why."""

import json
import os
import re
import resource

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.flux  # noqa: F401  (core's package layout on both ends of the supported range)
import folder_paths
import pytest
import torch
from comfy.cli_args import args
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.policies import Composite, KLSoft, Sum
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.baking import BakeSettings, bake_to_file
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import attachment_of, load_loras, set_policy
from lora_conductor.host.loras import LoraChoice
from repo_paths import REPO

from .. import tiny

KOHYA_NAMES = {
    "attn1.to_q": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
}
EXACT = BakeSettings(dtype=torch.float32)


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_unet()


@pytest.fixture(scope="module")
def clip():
    class Target:
        params = {}
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    clip = comfy.sd.CLIP(Target(), parameters=1)
    tiny.randomise(clip.cond_stage_model)
    return clip


@pytest.fixture
def folders(models_dir, tmp_path, monkeypatch):
    """An output folder of the test's own, and a function that puts a file into the host's loras folder."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    made = []

    def put(name, tensors, metadata=None):
        made.append(models_dir / "loras" / name)
        save_file(tensors, made[-1], metadata=metadata)

    yield put
    for path in made:
        path.unlink(missing_ok=True)


def parent(model, seed, more=(), **kw):
    """Two linear layers and a convolution, and whatever a test adds."""
    generator = torch.Generator().manual_seed(seed)
    shapes = tiny.layer_shapes(model)
    chosen = [next(key for key in shapes if name in key) for name in ("attn1.to_q", "ff.net.2", "in_layers.2")]
    tensors = {}
    for key in chosen:
        shape, prefix = shapes[key], key.removesuffix(".weight")
        tensors[f"{prefix}.lora_up.weight"] = torch.randn(shape[0], 3, generator=generator) * 0.3
        tensors[f"{prefix}.lora_down.weight"] = torch.randn(3, *shape[1:], generator=generator) * 0.1
    return {**tensors, **dict(more)}


def load(model, clip=None, strengths=(0.8, 0.6)):
    choices = [
        LoraChoice(f"{role}.safetensors", role, strength, strength / 2)
        for role, strength in zip(("subject", "style"), strengths, strict=True)
    ]
    return load_loras(model, clip, choices)[:2]


def read(file):
    with safe_open(file.path, "pt") as opened:
        return load_file(file.path), opened.metadata()


def test_norms_and_biases_are_written_as_core_reads_them(model, folders, record_property):
    bias = next(k for k in model.model.state_dict() if k.endswith("ff.net.2.bias")).removesuffix(".bias")
    more = [
        {"diffusion_model.out.0.diff": torch.randn(64) * 0.2, f"{bias}.diff_b": torch.randn(64) * 0.2},
        {"diffusion_model.out.0.diff": torch.randn(64) * 0.2, "diffusion_model.out.0.diff_b": torch.randn(64) * 0.2},
    ]
    for seed, role in enumerate(("subject", "style")):
        folders(f"{role}.safetensors", parent(model, seed, more[seed]))
    fused = set_policy(load(model)[0], KLSoft())
    live = tiny.sample(fused)
    file, report = bake_to_file(fused, None, live, EXACT, "loras/norms")
    tensors, _ = read(file)
    beside = {key for key in tensors if ".lora_" not in key and "alpha" not in key}
    assert beside == {
        "lora_unet_conv_norm_out.diff",
        "lora_unet_conv_norm_out.diff_b",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2.diff_b",
    }
    error = tiny.relative(tiny.sample(tiny.core_stacked(model, (file.path, 1.0))), live)
    record_property("norms and biases", error)
    assert error < 1e-5 and "not in the file" not in report


def test_what_cannot_be_written_is_named(model, folders):
    """A replaced weight beside a fused delta of the same weight; an adapter that has no key form there."""
    shared = next(k for k in tiny.layer_shapes(model) if "attn1.to_q" in k).removesuffix(".weight")
    set_weight = {f"{shared}.set_weight": torch.zeros(tiny.layer_shapes(model)[f"{shared}.weight"])}
    replaced = {k: v for k, v in parent(model, 0).items() if shared not in k} | set_weight
    folders("subject.safetensors", replaced)
    folders("style.safetensors", parent(model, 1, {"diffusion_model.out.0.set_weight": torch.ones(64)}))
    fused = load(model)[0]
    file, report = bake_to_file(fused, None, tiny.sample(fused), EXACT, "loras/odd")
    tensors, metadata = read(file)
    assert torch.equal(tensors["lora_unet_conv_norm_out.set_weight"], torch.ones(64))
    left_out = json.loads(metadata["lora_conductor"])["left_out"]
    assert list(left_out) == [f"{shared}.weight"] and f"{shared}.weight" in report
    assert sum(key.endswith(".set_weight") for key in tensors) == 1
    assert f"{KOHYA_NAMES['attn1.to_q']}.lora_up.weight" in tensors


def test_text_encoder_parts_are_written_at_their_strengths(model, clip, folders, record_property):
    layer = "text_model_encoder_layers_0_mlp_fc1"
    norm = "text_encoders.clip_l.transformer.text_model.final_layer_norm"
    torch.manual_seed(0)
    for seed, (role, prefix) in enumerate((("subject", f"lora_te_{layer}"), ("style", f"lora_te1_{layer}"))):
        text = {
            f"{prefix}.lora_up.weight": torch.randn(3072, 2) * 0.1,
            f"{prefix}.lora_down.weight": torch.randn(2, 768) * 0.1,
            f"{prefix}.alpha": torch.tensor(1.0),
            f"{norm}.diff": torch.randn(768) * 0.1,
        }
        folders(f"{role}.safetensors", parent(model, seed, text))
    fused, both = load(model, clip)
    live = tiny.sample(fused)
    file, report = bake_to_file(fused, both, live, EXACT, "loras/text")
    tensors, metadata = read(file)
    assert tensors[f"lora_te_{layer}.lora_up.weight"].shape == (3072, 4)
    assert [p["strength"] for p in json.loads(metadata["lora_conductor"])["text_encoder"]] == [0.4, 0.3]
    _, loaded = comfy.sd.load_lora_for_models(model, clip, load_file(file.path), 1.0, 1.0)
    worst = 0.0
    assert loaded.patcher.patches.keys() == both.patcher.patches.keys() and len(both.patcher.patches) == 2
    for key, patches in both.patcher.patches.items():
        weight = clip.cond_stage_model.state_dict()[key].float()
        ours, theirs = (
            comfy.lora.calculate_weight(p, weight.clone(), key) for p in (loaded.patcher.patches[key], patches)
        )
        assert tiny.relative(weight, theirs) > 1e-3
        worst = max(worst, tiny.relative(ours, theirs))
    record_property("text encoder", worst)
    assert worst < 1e-5 and "connect the loader's CLIP" not in report
    _, report = bake_to_file(fused, None, live, EXACT, "loras/text")
    assert "connect the loader's CLIP" in report


def test_header_says_what_it_is(model, folders, monkeypatch):
    for seed, role in enumerate(("subject", "style")):
        metadata = {"modelspec.architecture": "stable-diffusion-v1", "ss_base_model_version": f"sd_v{seed}"}
        folders(f"{role}.safetensors", parent(model, seed), metadata)
    fused = load(model)[0]
    live = tiny.sample(fused, steps=3)
    workflow = {"workflow": {"nodes": []}}
    file, report = bake_to_file(fused, None, live, BakeSettings(1, 4), "loras/say", {"1": {}}, workflow)
    tensors, metadata = read(file)
    assert file.name == "say_00001_.safetensors" and str(file.path) in report and "step 2 of 3 steps" in report
    own = json.loads(metadata["lora_conductor"])
    assert own["version"] in (REPO / "pyproject.toml").read_text() and (own["step"], own["steps"]) == (2, 3)
    assert [(p["name"], p["role"], p["strength"]) for p in own["parents"]] == [
        ("subject.safetensors", "subject", 0.8),
        ("style.safetensors", "style", 0.6),
    ]
    assert own["parents"][0]["sha256"] == attachment_of(fused).spec.loras[0].digest
    assert own["policy"] == attachment_of(fused).spec.policy.settings()
    assert own["rank"] == 4 and 0 < own["energy_lost_mean"] <= own["energy_lost_max"] < 1
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_module"] == "networks.lora"
    # Only what both parents say.
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1" and "ss_base_model_version" not in metadata
    assert json.loads(metadata["prompt"]) == {"1": {}} and json.loads(metadata["workflow"]) == {"nodes": []}
    alphas = [float(value) for key, value in tensors.items() if key.endswith(".alpha")]
    assert alphas and max(alphas) == 4
    monkeypatch.setattr(args, "disable_metadata", True)
    second, _ = bake_to_file(fused, None, live, BakeSettings(), "loras/say", {"1": {}}, workflow)
    assert second.name == "say_00002_.safetensors" and not {"prompt", "workflow"} & set(read(second)[1])


def test_what_trainers_said_of_the_parents_is_kept_by_name(model, folders):
    words = {"subject": "zorvath fox", "style": "openmoji"}
    tags = {"subject": {"10_fox": {"fox": 13, "zorvath": 12, "red": 3}}, "style": "no table"}
    for seed, role in enumerate(words):
        metadata = {
            "modelspec.trigger_phrase": words[role],
            "modelspec.usage_hint": f"as {role}",
            "ss_tag_frequency": json.dumps(tags[role]) if role == "subject" else tags[role],
            "ss_clip_skip": "2",
            "ss_learning_rate": f"{seed}",
            "other": "not of theirs",
        }
        folders(f"{role}.safetensors", parent(model, seed), metadata)
    fused = set_policy(load(model)[0], Sum())
    file, report = bake_to_file(fused, None, None, EXACT, "loras/words")
    metadata = read(file)[1]
    assert metadata["modelspec.trigger_phrase"] == "zorvath fox, openmoji" and metadata["ss_clip_skip"] == "2"
    assert json.loads(metadata["ss_tag_frequency"]) == {"subject: 10_fox": tags["subject"]["10_fox"]}
    kept = json.loads(metadata["lora_conductor_parents"])
    assert [kept[f"{role}.safetensors"]["modelspec.usage_hint"] for role in words] == ["as subject", "as style"]
    assert kept["style.safetensors"]["ss_learning_rate"] == "1" and "other" not in kept["style.safetensors"]
    assert all(f"trigger words of {role}.safetensors: {said}" in report for role, said in words.items())
    folders("subject.safetensors", parent(model, 0), {"ss_tag_frequency": json.dumps(tags["subject"])})
    _, report = bake_to_file(set_policy(load(model)[0], Sum()), None, None, EXACT, "loras/words")
    assert "subject.safetensors names no trigger words; its data most often said: fox, zorvath, red" in report


def test_notes(model, folders):
    for seed, role in enumerate(("subject", "style")):
        folders(f"{role}.safetensors", parent(model, seed))
    beside = tiny.core_stacked(model, (path_of("style"), 0.3))
    fused = set_policy(load(beside)[0], Composite())
    file, report = bake_to_file(fused, None, tiny.sample(fused), BakeSettings(), "elsewhere/note")
    assert file.name is None and "begin filename_prefix with loras/" in report
    assert "'composite' runs the model once per LoRA" in report and "LoRAs from other loaders" in report
    _, report = bake_to_file(set_policy(load(model)[0], Sum()), None, None, BakeSettings(), "loras/note")
    assert "as merged by 'sum'" in report and "other loaders" not in report and "runs the model once" not in report


def test_the_report_says_what_is_averaged_away(model, folders):
    for seed, role in enumerate(("subject", "style")):
        folders(f"{role}.safetensors", parent(model, seed))
    fused = load(model)[0]
    alone = tiny.sample(fused, steps=3)
    file, report = bake_to_file(fused, None, alone, EXACT, "loras/far")
    assert "the mean of 3 steps of the positive prompt's passes, decided by 'recommended'" in report
    assert "% over steps" in report and "farthest from step" in report and "a lower rank would keep: 4:" in report
    assert "negative" not in report and "emphasis" not in report, "at CFG 1 there is no such pass"
    own = json.loads(read(file)[1]["lora_conductor"])
    assert own["called"] == "recommended" and 0 < own["averaged_away"]["steps"] < 1
    guided = tiny.sample(fused, steps=3, cfg=3.0)
    _, report = bake_to_file(fused, None, guided, EXACT, "loras/far")
    assert "the negative prompt's passes had weights" in report and "Create Hook LoRA" in report
    often = float(re.search(r"so that they count ([\d.]+) times", report)[1])
    hooks = re.findall(r"([\d.]+) and ([\d.]+) at CFG (\d)", report)
    assert [cfg for *_, cfg in hooks] == ["3", "5", "7"] and 1 < often < 2.5  # not all of both is there
    for positive, negative, cfg in hooks:  # both are told to three digits
        counted = float(negative) + int(cfg) * (float(positive) - float(negative))
        assert counted == pytest.approx(often, abs=0.01)
    summed = set_policy(fused, Sum(), Refinement(emphasis=2.0))
    _, report = bake_to_file(summed, None, None, EXACT, "loras/far")
    assert "so that they count 2 times" in report
    assert "at strength 0.9 and 0.35 at CFG 3" in report  # 3 x 0.9 - 2 x 0.35 is 2


def test_one_lora_needs_no_latent_and_keeps_its_rank(model, folders):
    folders("subject.safetensors", parent(model, 0))
    fused = load_loras(model, None, [LoraChoice("subject.safetensors", "subject", 0.7, 1.0)])[0]
    file, report = bake_to_file(fused, None, None, EXACT, "loras/one")
    ours, core = tiny.core_stacked(model, (file.path, 1.0)), tiny.core_stacked(model, (path_of("subject"), 0.7))
    assert tiny.relative(tiny.sample(ours), tiny.sample(core)) < 1e-5
    assert "every LoRA whole" in report and "of rank 3 at most" in report


def test_loras_of_norms_or_of_the_text_encoder_alone(model, clip, folders):
    """Nothing is routed then; the file still says whose it is."""
    norm = "text_encoders.clip_l.transformer.text_model.final_layer_norm"
    folders("subject.safetensors", {"diffusion_model.out.0.diff": torch.ones(64)})
    folders("style.safetensors", {f"{norm}.diff": torch.ones(768)})
    fused, both = load(model, clip)
    file, report = bake_to_file(fused, both, None, EXACT, "loras/alone")
    tensors, metadata = read(file)
    assert set(tensors) == {"lora_unet_conv_norm_out.diff", f"{norm}.diff"} and "energy" not in report
    assert torch.equal(tensors[f"{norm}.diff"], torch.full((768,), 0.3))
    assert metadata["modelspec.merged_from"] == "subject.safetensors, style.safetensors"
    only_text = load(model, clip, strengths=(0.0, 0.6))
    with pytest.raises(ConductorError, match="its LoRAs add nothing that could be written"):
        bake_to_file(only_text[0], None, None, EXACT, "loras/alone")
    file, _ = bake_to_file(*only_text, None, EXACT, "loras/alone")
    assert set(read(file)[0]) == {f"{norm}.diff"}


def path_of(role):
    return folder_paths.get_full_path_or_raise("loras", f"{role}.safetensors")


def test_bad_wishes_say_why_and_leave_no_file(model, folders, tmp_path):
    for seed, role in enumerate(("subject", "style")):
        folders(f"{role}.safetensors", parent(model, seed))
    fused = load(model)[0]
    live = tiny.sample(fused, steps=3)
    other = live + 1
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "taken").write_text("a file, no folder")
    for arguments, said in (
        ((model, None, live, EXACT, "loras/x"), "model: it carries no LoRAs of DualLoRADynamicLoader"),
        ((fused, None, None, EXACT, "loras/x"), "latent: the policy 'recommended' decides while sampling"),
        ((fused, None, other, EXACT, "loras/x"), "did not make this latent"),
        ((fused, None, live, BakeSettings(3), "loras/x"), "step: the run has 3 steps, not 4.*'average'"),
        ((fused, None, live, EXACT, "../outside"), "filename_prefix: '../outside' cannot be used"),
        ((fused, None, live, EXACT, "taken/x"), "filename_prefix: .* cannot be"),
    ):
        with pytest.raises(ConductorError, match=said):
            bake_to_file(*arguments)
    assert [path.name for path in (tmp_path / "output").rglob("*") if path.is_file()] == ["taken"]
    huge = load(model, strengths=(1e14, 1e14))[0]
    with pytest.raises(ConductorError, match="too large for torch.float16. Choose bf16"):
        bake_to_file(set_policy(huge, Sum()), None, None, BakeSettings(dtype=torch.float16), "loras/x")


def test_a_full_disk_leaves_nothing_behind(model, folders, tmp_path):
    for seed, role in enumerate(("subject", "style")):
        folders(f"{role}.safetensors", parent(model, seed))
    fused = set_policy(load(model)[0], Sum())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ConductorError, match="cannot be written .*disk space"):
            bake_to_file(fused, None, None, EXACT, "loras/full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "output" / "loras") == []
    bake_to_file(fused, None, None, EXACT, "loras/full")
    assert os.listdir(tmp_path / "output" / "loras") == ["full_00001_.safetensors"]


def test_it_can_be_interrupted(model, folders, tmp_path):
    for seed, role in enumerate(("subject", "style")):
        folders(f"{role}.safetensors", parent(model, seed))
    fused = set_policy(load(model)[0], Sum())
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        bake_to_file(fused, None, None, EXACT, "loras/stopped")
    assert not list((tmp_path / "output").rglob("*"))
