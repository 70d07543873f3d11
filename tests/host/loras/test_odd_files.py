"""Files that are odd or broken in one place: only what is used may refuse, by name; the rest is told, and core's."""

import zipfile

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.flux  # noqa: F401  (core's package layout on both ends of the supported range)
import comfy.utils
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import attachment_of, load_loras
from lora_conductor.host.loras import LoraChoice, choices_of_stack

from .. import tiny
from ..adapter_files import Maker, make_file

INF, NAN = float("inf"), float("nan")
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


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
def put(models_dir):
    """Put a file into the host's own loras folder."""
    made = []

    def put(tensors, name="odd.safetensors"):
        path = models_dir / "loras" / name
        made.append(path)
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        elif name.endswith(".safetensors"):
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        return path

    yield put
    for path in made:
        path.unlink(missing_ok=True)


def load(model, name="odd.safetensors", strength=1.0, clip=None, clip_strength=1.0):
    return load_loras(model, clip, [LoraChoice(name, "subject", strength, clip_strength)])


def layer(model):
    """A linear layer in the middle."""
    key = next(k for k, shape in tiny.layer_shapes(model).items() if len(shape) == 2 and "attn1.to_q" in k)
    return key.removesuffix(".weight"), tiny.layer_shapes(model)[key]


def plain(model, tmp_path, kind="lora"):
    return load_file(make_file(tmp_path / "plain.safetensors", kind, linear(model)))


def linear(model):
    return {key: shape for key, shape in tiny.layer_shapes(model).items() if len(shape) == 2}


def text(value=0.1):
    torch.manual_seed(1)
    return {f"{TEXT}.lora_up.weight": torch.randn(3072, 2) * value, f"{TEXT}.lora_down.weight": torch.randn(2, 768)}


@pytest.mark.parametrize("alpha", [INF, -INF, NAN])
def test_alpha_that_nobody_uses_may_be_anything(model, put, tmp_path, alpha):
    """9999999999 in half precision, which ai-toolkit writes beside whole LoKr matrices."""
    tensors = plain(model, tmp_path, "lokr")
    tensors |= {key: torch.tensor(alpha, dtype=torch.float16) for key in tensors if key.endswith(".alpha")}
    path = put(tensors)
    ours, _, report = load(model, path.name, 0.8)
    core = tiny.core_stacked(model, (path, 0.8))
    assert tiny.relative(tiny.sample(ours), tiny.sample(core)) < 1e-5
    assert tiny.relative(tiny.sample(model), tiny.sample(core)) > 1e-2 and "NaN" not in report


@pytest.mark.parametrize("kind", ["lora", "lokr_factored", "loha", "glora", "oft"])
def test_alpha_that_is_used_refuses_by_name(model, put, tmp_path, kind):
    tensors = plain(model, tmp_path, kind)
    key = sorted(key for key in tensors if key.endswith(".alpha"))[3]
    put(tensors | {key: torch.tensor(INF)})
    with pytest.raises(ConductorError, match=rf"odd.*NaN or infinite values in 1 of .*first: {key}"):
        load(model)


@pytest.mark.parametrize(("kind", "leaf"), [("loha", "hada_w2_a"), ("lora", "lora_up.weight")])
def test_values_whose_product_is_no_number_are_refused_by_layer(model, put, tmp_path, kind, leaf):
    """Each of them is one, so that core makes a picture of NaN; the other layers are applied."""
    tensors, (name, _) = plain(model, tmp_path, kind), layer(model)
    path = put(
        tensors | {f"{name}.{leaf}": tensors[f"{name}.{leaf}"].sign() * 3e38, f"{name}.alpha": torch.tensor(99.0)}
    )
    ours, _, report = load(model, path.name)
    assert f"{name}.weight: its values are too large" in report
    rest = put({key: value for key, value in tensors.items() if not key.startswith(name)}, "rest.safetensors")
    assert tiny.relative(tiny.sample(ours), tiny.sample(tiny.core_stacked(model, (rest, 1.0)))) < 1e-5


def test_values_that_nobody_uses_are_a_note(model, put, tmp_path, clip):
    tensors = plain(model, tmp_path)
    path = put(tensors | text(NAN) | {"somebody.elses.lora_up.weight": torch.full((2, 2), INF)})
    ours, _, report = load(model, path.name)
    assert "2 keys that are not applied hold NaN or infinite values" in report and f"    {TEXT}.lora_up" in report
    core = tiny.core_stacked(model, (path, 1.0))
    assert tiny.relative(tiny.sample(ours), tiny.sample(core)) < 1e-5
    with pytest.raises(ConductorError, match=rf"NaN or infinite values.*first: {TEXT}\.lora_up"):
        load(model, path.name, clip=clip)
    report = load(model, path.name, clip=clip, clip_strength=0.0)[2]
    assert "3 keys that are not applied" in report or "2 keys that are not applied" in report


def test_strength_zero_leaves_the_model_alone_whatever_the_file_is(model, put, clip):
    put(b"\0" * 64, "damaged.safetensors")
    put({"diffusion_model.nowhere.lora_up.weight": torch.zeros(2, 2)}, "family.safetensors")
    for name in ("damaged.safetensors", "family.safetensors", "gone.safetensors"):
        ours, _, report = load(model, name, strength=0.0)
        assert not ours.patches and attachment_of(ours).spec is None and f"{name}  (strength 0" in report
    ours, texts, report = load(model, "family.safetensors", strength=0.0, clip=clip)
    assert not ours.patches and not texts.patcher.patches and "the model is left alone" in report
    with pytest.raises(ConductorError, match="damaged"):
        load(model, "damaged.safetensors", strength=0.0, clip=clip)


def test_a_file_for_the_text_encoder_alone(model, put, clip):
    put(text())
    with pytest.raises(ConductorError, match="nothing for the diffusion model: 2 of its 2 keys.*Connect CLIP"):
        load(model)
    _, texts, report = load(model, clip=clip)
    assert len(texts.patcher.patches) == 1 and "1 text-encoder weights at strength 1" in report
    _, texts, report = load(model, clip=clip, clip_strength=0.0)
    assert not texts.patcher.patches and "1 text-encoder weights left alone" in report


def test_stacks_of_four_fields(model):
    for empty in (None, "", "  "[:0], (), []):
        (choice,) = choices_of_stack([("x", 0.5, 1.0, empty)], "subject", "subject_stack")
        assert (choice.name, choice.strength) == ("x", 0.5)
    with pytest.raises(ConductorError, match="subject_stack, entry 1: 'x' has strengths by block"):
        choices_of_stack([("x", 0.5, 1.0, "1,0,0,1")], "subject", "subject_stack")


def no_rank(shape, alpha):
    found = {"lora_up.weight": torch.zeros(shape[0], 0), "lora_down.weight": torch.zeros(0, shape[1])}
    return found | ({} if alpha is None else {"alpha": torch.tensor(alpha)})


def no_rank_lokr(shape, alpha):
    found = {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.zeros(shape[0] // 2, 0)}
    return found | {"lokr_w2_b": torch.zeros(0, shape[1] // 2), "alpha": torch.tensor(alpha or 1.0)}


ODD = {
    "rank 0": lambda shape: no_rank(shape, 1.0),
    "LoKr of rank 0": lambda shape: no_rank_lokr(shape, 1.0),
    "alpha of three": lambda shape: Maker(0).lora(shape) | {"alpha": torch.ones(3)},
    "complex alpha": lambda shape: Maker(0).lora(shape) | {"alpha": torch.tensor(1j)},
    "complex factor": lambda shape: Maker(0).lora(shape) | {"lora_up.weight": torch.ones(shape[0], 4) * 1j},
    "whole numbers": lambda shape: Maker(0).lora(shape) | {"lora_up.weight": torch.ones(shape[0], 4).int()},
    "a factor of one number": lambda shape: Maker(0).lora(shape) | {"lora_up.weight": torch.tensor(1.0)},
    "many dimensions": lambda shape: Maker(0).lora(shape) | {"lora_up.weight": torch.ones([1] * 64)},
    "empty LoKr": lambda shape: {"lokr_w1": torch.ones(0, 2), "lokr_w2": torch.ones(0, 3)},
    "empty Tucker core": lambda shape: Maker(0).lora(shape) | {"lora_mid.weight": torch.ones(0, 0, 3, 3)},
    "a huge LoKr": lambda shape: {
        "lokr_w1_a": torch.ones(200000, 1),
        "lokr_w1_b": torch.ones(1, 200000),
        "lokr_w2": torch.ones(1, 1),
        "alpha": torch.tensor(1.0),
    },
    "a huge Tucker core": lambda shape: {
        "lora_up.weight": torch.ones(shape[0], 1),
        "lora_down.weight": torch.ones(1, 200000),
        "lora_mid.weight": torch.ones(1, 1, 500, 500),
    },
    "overflowing rotation": lambda shape: {
        "oft_blocks": torch.full((4, shape[0] // 4, shape[0] // 4), 3e38).triu(),
        "alpha": torch.tensor(0.0),
    },
    "half a LoKr": lambda shape: {"lokr_w1": torch.ones(2, 2)},
    "a broken reshape": lambda shape: Maker(0).lora(shape) | {"reshape_weight": torch.tensor([-1, 1 << 40])},
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_layer_is_named_and_the_others_are_applied(model, put, tmp_path, name):
    prefix, shape = layer(model)
    tensors = {k: v for k, v in plain(model, tmp_path).items() if not k.startswith(f"{prefix}.")}
    good = put(tensors, "good.safetensors")
    put(tensors | {f"{prefix}.{leaf}": value for leaf, value in ODD[name](shape).items()})
    ours, _, report = load(model)
    assert "could not be applied" in report and prefix in report
    assert "Error" not in report and "[0]" not in report
    assert torch.equal(tiny.sample(ours), tiny.sample(load(model, good.name)[0]))


def test_rank_0_without_alpha_is_nothing_as_in_core(model, put, tmp_path):
    prefix, shape = layer(model)
    tensors = plain(model, tmp_path)
    path = put(tensors | {f"{prefix}.{leaf}": value for leaf, value in no_rank(shape, None).items()})
    del tensors[f"{prefix}.alpha"]
    save_file({k: v for k, v in load_file(path).items() if k != f"{prefix}.alpha"}, path)
    ours, core = load(model, path.name)[0], tiny.core_stacked(model, (path, 1.0))
    assert tiny.relative(tiny.sample(ours), tiny.sample(core)) < 1e-5


def expanded(model):
    prefix, shape = layer(model)
    wide = torch.ones(1, 1).expand(200_000_000, 1)
    return {f"{prefix}.lora_up.weight": wide, f"{prefix}.lora_down.weight": torch.ones(1, shape[1])}


def shared(model):
    part = torch.ones(1 << 18)
    return {f"key{i}": part for i in range(200)}


PICKLED = {
    "a list": (lambda model: [torch.ones(2)], "cannot be read.*no table of named tensors"),
    "a tensor": (lambda model: torch.ones(2), "cannot be read|holds no tensors"),
    "numbers": (lambda model: {"a": 1, "b": 2}, "holds no tensors.*int, not a tensor"),
    "numbered tensors": (lambda model: {1: torch.ones(2), 2: torch.ones(2)}, "holds no tensors"),
    "nested": (lambda model: {"state_dict": [1]}, "holds no tensors"),
    "meta": (lambda model: {"a.lora_up.weight": torch.ones(2, device="meta"), "b": 1}, "a shape, but no values"),
    "sparse": (lambda model: {"a.lora_up.weight": torch.eye(2).to_sparse(), "b": 1}, "not stored as plain numbers"),
    "an object": (lambda model: {"a": slice(0, 1)}, "more than tensors"),
    "an expanded view": (expanded, "does not fit this model.*4 bytes are repeated to 800000000"),
    "shared numbers": (shared, "times larger in memory"),
}


@pytest.mark.parametrize("name", PICKLED)
def test_pickled_files_are_tables_of_tensors(model, put, name):
    make, said = PICKLED[name]
    put(make(model), "odd.pt")
    with pytest.raises(ConductorError, match=said) as caught:
        load(model, "odd.pt")
    assert "weights_only" not in str(caught.value) and "object has no" not in str(caught.value)


def test_a_packed_file_is_not_unpacked(model, put, tmp_path):
    """6 kB that become 0.8 GB."""
    path = put({"a.lora_up.weight": torch.zeros(1 << 24), "b": torch.zeros(1)}, "odd.pt")
    parts = {}
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ConductorError, match="times larger in memory"):
        load(model, "odd.pt")
