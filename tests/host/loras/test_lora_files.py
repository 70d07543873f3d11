"""LoRA files, good and bad: every key ends up applied or named, and bad files say what is wrong with them."""

import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.host.core.errors import ConductorError
from lora_conductor.host.fusing.attach import attachment_of
from lora_conductor.host.fusing.loading import load_loras
from lora_conductor.host.loras.choices import LoraChoice
from lora_conductor.host.loras.file import read_lora
from lora_conductor.host.loras.patches import model_patches

from .. import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_unet()


@pytest.fixture
def loras(models_dir, monkeypatch):
    """The host's own loras folder, with a function that puts a file there."""
    made = []

    def put(name, tensors=None, data=None):
        path = models_dir / "loras" / name
        made.append(path)
        if data is not None:
            path.write_bytes(data)
        else:
            save_file(tensors, path)
        return path

    yield put
    for path in made:
        path.unlink(missing_ok=True)


def load(model, subject="None", style="None", clip=None, strength=1.0):
    return load_loras(
        model, clip, [LoraChoice(subject, "subject", strength, 1.0), LoraChoice(style, "style", strength, 1.0)]
    )


def plain(model, seed=0, **kw):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return load_file(tiny.make_lora(Path(folder) / "x.safetensors", tiny.layer_shapes(model), seed=seed, **kw))


def assert_error(model, match, **kw):
    patches, weights = dict(model.patches), {k: v.clone() for k, v in model.model.state_dict().items()}
    with pytest.raises(ConductorError, match=match):
        load(model, **kw)
    assert model.patches == patches and attachment_of(model).spec is None
    assert all(torch.equal(v, weights[k]) for k, v in model.model.state_dict().items())


def test_missing_file(model):
    assert_error(
        model, r"subject LoRA 'gone\.safetensors' is not in ComfyUI's loras folder", subject="gone.safetensors"
    )


def test_truncated_file(model, loras):
    path = loras("cut.safetensors", plain(model))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_error(model, r"'cut\.safetensors' cannot be read.*download it again", style="cut.safetensors")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 20, b"\x00" * 64])
def test_not_a_lora_at_all(model, loras, data):
    loras("page.safetensors", data=data)
    assert_error(model, r"'page\.safetensors'.*again", subject="page.safetensors")


def test_wrong_family(model, loras):
    flux = tiny.world_flux()
    loras("flux.safetensors", plain(flux))
    assert_error(model, r"'flux\.safetensors' does not fit this model.*SD15.*family", subject="flux.safetensors")


def test_right_names_wrong_widths(model, loras):
    tensors = {k: torch.zeros(v.shape[0] + 8, *v.shape[1:]) if v.ndim > 1 else v for k, v in plain(model).items()}
    loras("wide.safetensors", tensors)
    assert_error(model, r"'wide\.safetensors' does not fit.*cannot be applied.*shape", subject="wide.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_no_numbers(model, loras, bad, dtype):
    tensors = plain(model)
    key = next(k for k in tensors if k.endswith("lora_up.weight"))
    tensors[key] = torch.full(tensors[key].shape, bad).to(dtype)
    loras("nan.safetensors", tensors)
    assert_error(model, rf"'nan\.safetensors' holds NaN or infinite values in 1 of .*{key}", subject="nan.safetensors")


def test_every_key_is_applied_or_named(model, loras):
    """A file with everything wrong that can be wrong beside one good layer."""
    tensors = plain(model)
    keys = sorted({k.split(".lora_")[0] for k in tensors if ".lora_" in k})
    good, half, wide, twice, *_ = keys
    linear = [k for k in keys if tensors[f"{k}.lora_up.weight"].ndim == 2]
    file = {k: v for k, v in tensors.items() if k.startswith(f"{good}.")}
    file[f"{half}.lora_up.weight"] = tensors[f"{half}.lora_up.weight"]  # its down is missing
    file[f"{wide}.lora_up.weight"] = torch.zeros(3, 4)
    file[f"{wide}.lora_down.weight"] = torch.zeros(4, 5)
    file[f"{twice}.lora_up.weight"] = tensors[f"{twice}.lora_up.weight"]
    file[f"{twice}.lora_down.weight"] = tensors[f"{twice}.lora_down.weight"]
    kohya = "lora_unet_" + twice.removeprefix("diffusion_model.").replace(".", "_")
    file[f"{kohya}.lora_up.weight"] = tensors[f"{twice}.lora_up.weight"].clone()
    file[f"{kohya}.lora_down.weight"] = tensors[f"{twice}.lora_down.weight"].clone()
    diff = linear[-1]
    file[f"{diff}.lora_up.weight"] = tensors[f"{diff}.lora_up.weight"]
    file[f"{diff}.lora_down.weight"] = tensors[f"{diff}.lora_down.weight"]
    file[f"{diff}.diff"] = torch.zeros(tiny.layer_shapes(model)[f"{diff}.weight"])
    file["somebody.elses.lora_up.weight"] = torch.zeros(4, 4)
    file["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(4, 4)
    path = loras("mixed.safetensors", file)
    patches = model_patches(read_lora("mixed", str(path)), model)

    named = set(patches.unmatched) | {
        key for key in file for name in patches.refused if key.startswith(name.removesuffix(".weight"))
    }
    applied = {k for k in file if k.startswith((f"{good}.", f"{twice}.", f"{kohya}.", f"{diff}."))}
    assert named | applied == set(file), "a key was neither applied nor named"
    assert sorted(patches.unmatched) == [
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "somebody.elses.lora_up.weight",
    ]
    assert half in patches.refused and f"{wide}.weight" in patches.refused
    assert "applied instead" in patches.refused.get(kohya, "") + patches.refused.get(twice, "")
    assert "applied instead" in patches.refused[f"{diff}.lora_up.weight"]
    report = load(model, subject="mixed.safetensors")[2]
    for name in (half, f"{wide}.weight", "somebody.elses.lora_up.weight"):
        assert name in report


def test_clip_gets_both_loras_text_parts_as_core_applies_them(model, loras):
    """Text-encoder keys go through core at each LoRA's own strength; a chained second LoRA keeps the first."""
    import comfy.sd1_clip
    import comfy.text_encoders.flux  # noqa: F401  (core's package layout on both ends of the supported range)

    class Target:
        params = {}
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    clip = comfy.sd.CLIP(Target(), parameters=1)
    tiny.randomise(clip.cond_stage_model)
    te = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        prefix = "lora_te_text_model_encoder_layers_0_mlp_fc1"
        te[seed] = {
            f"{prefix}.lora_up.weight": torch.randn(3072, 2) * 0.1,
            f"{prefix}.lora_down.weight": torch.randn(2, 768) * 0.1,
        }
        loras(f"te{seed}.safetensors", {**plain(model, seed=seed), **te[seed]})
    _, ours, report = load_loras(
        model,
        clip,
        [LoraChoice("te1.safetensors", "subject", 1.0, 0.5), LoraChoice("te2.safetensors", "style", 1.0, 0.7)],
    )
    _, core = comfy.sd.load_lora_for_models(None, clip, te[1], 0, 0.5)
    _, core = comfy.sd.load_lora_for_models(None, core, te[2], 0, 0.7)
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert [p[0] for p in ours.patcher.patches[key]] == [0.5, 0.7]
    for theirs, mine in zip(core.patcher.patches[key], ours.patcher.patches[key], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(theirs[1].weights[:2], mine[1].weights[:2], strict=True))
    assert not clip.patcher.patches and "match nothing" not in report
    assert "1 text-encoder weights at strength 0.5" in report
    prefix = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    loras("te3.safetensors", {**plain(model), **te[1], f"{prefix}.lora_up.weight": torch.zeros(3071, 2)})
    _, unchanged, report = load(model, subject="te3.safetensors", clip=clip)
    assert "mlp.fc1.weight: " in report and not unchanged.patcher.patches


def test_a_changed_file_is_read_again(model, loras):
    first = read_lora("x", str(loras("x.safetensors", plain(model, seed=1))))
    assert read_lora("x", first.path) is first
    second = read_lora("x", str(loras("x.safetensors", plain(model, seed=2, rank=5))))
    assert second.digest != first.digest


def test_both_none_is_no_change(model):
    same, _, report = load(model)
    assert attachment_of(same).spec is None and "SD15" in report


def test_stock_list_has_the_small_worlds_loras():
    assert "lora_subject_fox.safetensors" in folder_paths.get_filename_list("loras")
