"""A baked LoRA against the live fusion: core loads the file, one forward pass, the same result."""

from dataclasses import replace

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from lora_conductor.fusion.policies import RECOMMENDED, TIES, KLoRA, KLSoft, NPLoRA, Paper, Sum, Switch
from lora_conductor.fusion.routing import Refinement
from lora_conductor.host.baking import BakeSettings, bake
from lora_conductor.host.fusing import attachment_of, fused, record_of_latent, set_policy
from lora_conductor.host.loras import loras_on

from .. import tiny
from ..adapter_files import make_file
from ..workflows import STYLE, SUBJECT

STEPS = 4
EXACT = BakeSettings(dtype=torch.float32)
LIVE = {
    "recommended": RECOMMENDED,
    "kl_soft": KLSoft(),
    "paper": Paper(),
    "k_lora": KLoRA(),
    "switch": Switch(2),
}


def sliced_lora(path, model, rank=3):
    """q, k and v of FLUX's image stream apart, and its output projection: diffusers' dialect."""
    generator = torch.Generator().manual_seed(5)
    config = model.model.model_config.unet_config
    hidden, tensors = config["hidden_size"], {}
    for i in range(config["depth"]):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            prefix = f"transformer.transformer_blocks.{i}.attn.{part}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) * hidden**-0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator) * 0.5
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module", params=["flux", "flux_sliced", "unet"])
def setting(request, tmp_path_factory):
    """A model, and the same with two LoRAs that share a part of their layers."""
    folder = tmp_path_factory.mktemp("loras")
    subject, style = folder / "subject.safetensors", folder / "style.safetensors"
    model = tiny.tiny_unet() if request.param == "unet" else tiny.tiny_flux()
    shapes = list(tiny.layer_shapes(model).items())
    tiny.make_lora(subject, dict(s for i, s in enumerate(shapes) if i % 3 != 0), seed=1, size=0.2)
    if request.param == "flux_sliced":
        tiny.make_lora(subject, {k: s for k, s in shapes if "double_blocks" in k}, seed=1, size=0.2)
        sliced_lora(style, model)
    else:
        tiny.make_lora(style, dict(s for i, s in enumerate(shapes) if i % 3 != 1), rank=3, seed=2, size=0.2)
    return model, fused(model, (subject, 0.8), (style, 0.7))


def with_file(model, baked, path):
    """The model with the baked file on it, by core's own loader."""
    save_file(baked.tensors, path)
    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 0)[0]


def steps_of(model, steps=STEPS):
    """A run at cfg 1: its latent, and before each step its noise level and latent, and what was predicted there."""
    seen = []
    made = tiny.sample(model, steps=steps, callback=lambda step, x0, x, total: seen.append((x.clone(), x0.clone())))
    sigmas = record_of_latent(model, made).sigmas
    return made, [(sigma, x, x0) for sigma, (x, x0) in zip(sigmas, seen, strict=False)]


def predicted(model, sigma, x):
    """One forward pass at a latent in the middle of a run."""
    seen = []
    tiny.sample(
        model,
        noise=x / sigma,
        sigmas=torch.tensor([sigma, sigma / 2]),
        callback=lambda step, x0, x, total: seen.append(x0.clone()),
    )
    return seen[0]


@pytest.mark.parametrize("name", LIVE)
def test_one_step_is_the_fused_forward_at_that_step(setting, tmp_path, record_property, name):
    model, routed = setting
    routed = set_policy(routed, LIVE[name])
    made, steps = steps_of(routed)
    errors = []
    for step in (1, STEPS - 1):
        sigma, x, live = steps[step]
        baked, _ = bake(routed, None, made, BakeSettings(step, 0, torch.float32))
        assert not baked.left_out
        ours = predicted(with_file(model, baked, tmp_path / "baked.safetensors"), sigma, x)
        assert tiny.relative(predicted(model, sigma, x), live) > 1e-3
        errors.append(tiny.relative(ours, live))
    record_property(f"{name}, one step", max(errors))
    assert max(errors) < 1e-5


def test_what_a_run_without_cfg_was_pushed_is_in_the_file(setting, tmp_path):
    model, routed = setting
    pushed = set_policy(routed, KLSoft(), Refinement(emphasis=1.5))
    made, steps = steps_of(pushed)
    sigma, x, live = steps[1]
    baked, _ = bake(pushed, None, made, BakeSettings(1, 0, torch.float32))
    assert tiny.relative(predicted(with_file(model, baked, tmp_path / "baked.safetensors"), sigma, x), live) < 1e-5
    kept = next(iter(attachment_of(pushed).live.kept)).call.step
    baked, _ = bake(pushed, None, made, BakeSettings(kept, 0, torch.float32))
    assert baked.apart[0] == kept and baked.apart[1] < 1e-5, "the report compares what is written"


@pytest.mark.parametrize("policy", [Sum(), NPLoRA(), TIES()], ids=["sum", "np_lora", "ties"])
def test_static_policies_need_no_latent_and_give_the_merged_model(setting, tmp_path, record_property, policy):
    model, routed = setting
    merged = set_policy(routed, policy)
    baked, record = bake(merged, None, None, EXACT)
    assert record is None and not baked.left_out
    live = tiny.sample(merged)
    ours = tiny.relative(tiny.sample(with_file(model, baked, tmp_path / "baked.safetensors")), live)
    record_property(f"{policy.name}, baked", ours)
    assert tiny.relative(tiny.sample(model), live) > 1e-3
    assert ours < 1e-5


def test_average_is_the_mean_of_the_steps_deltas(setting):
    """Weight by weight: the file of the average is the mean of the files of the single steps."""
    _, routed = setting
    made, _ = steps_of(routed)
    mean, _ = bake(routed, None, made, EXACT)
    steps = [bake(routed, None, made, BakeSettings(step, 0, torch.float32))[0] for step in range(STEPS)]
    changes = 0
    for prefix in mean.ranks:  # a layer may have several
        single = [dense(step, prefix) for step in steps]
        assert torch.allclose(dense(mean, prefix), sum(single) / STEPS, atol=1e-5)
        changes += not torch.allclose(single[0], single[-1], atol=1e-3)
    assert changes >= attachment_of(routed).spec.shared_layers > 0


def dense(baked, prefix):
    """A written update as core takes it, float64."""
    up, down = (baked.tensors[f"{prefix}.{leaf}.weight"].double().flatten(1) for leaf in leaves(baked))
    alpha = baked.tensors.get(f"{prefix}.alpha")
    return up @ down * (1.0 if alpha is None else alpha.item() / down.shape[0])


def leaves(baked):
    return ("lora_up", "lora_down") if baked.kohya else ("lora_B", "lora_A")


def test_the_positive_passes_are_nearer_than_all(tmp_path, record_property):
    """At CFG 3, several seeds: the run is what the positive prompt's passes decided, more than the mean of both."""
    model = tiny.tiny_flux()
    paths = [folder_paths.get_full_path_or_raise("loras", name) for name in (SUBJECT, STYLE)]
    routed = set_policy(fused(model, *((path, 1.0) for path in paths)), KLSoft())
    apart = {"positive": 0.0, "all": 0.0}
    for seed in range(3):
        live = tiny.sample(routed, steps=6, cfg=3.0, seed=seed)
        results = next(iter(attachment_of(routed).live.kept))
        for passes in apart:
            results.plan = results.plan if passes == "positive" else None
            baked, _ = bake(routed, None, live, EXACT)
            assert baked.losses.kept.positive_alone == (passes == "positive")
            ours = tiny.sample(with_file(model, baked, tmp_path / "baked.safetensors"), steps=6, cfg=3.0, seed=seed)
            apart[passes] += float((ours - live).square().mean().sqrt() / (live.max() - live.min())) / 3
    for passes, value in apart.items():
        record_property(f"kl_soft at CFG 3, {passes} passes, RMS of the range", value)
    assert apart["positive"] < 0.9 * apart["all"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(setting, tmp_path, record_property, dtype):
    model, routed = setting
    made, steps = steps_of(routed)
    sigma, x, live = steps[2]
    baked, _ = bake(routed, None, made, BakeSettings(2, 0, dtype))
    assert all(t.dtype == dtype for key, t in baked.tensors.items() if not key.endswith(".alpha"))
    ours = tiny.relative(predicted(with_file(model, baked, tmp_path / "baked.safetensors"), sigma, x), live)
    record_property(f"{dtype} file, one step", ours)
    assert ours < (1e-3 if dtype == torch.float16 else 1e-2)


def test_a_smaller_rank_loses_what_it_says(setting):
    _, routed = setting
    made, _ = steps_of(routed)
    whole, _ = bake(routed, None, made, EXACT)
    cut, _ = bake(routed, None, made, BakeSettings(None, 4, torch.float32))
    assert cut.size < whole.size and max(cut.ranks.values()) == 4 < max(whole.ranks.values()) <= 4 + 3 * 3
    for prefix, lost in cut.lost.items():
        truth = dense(whole, prefix)
        values = torch.linalg.svdvals(truth).square()
        assert lost == pytest.approx(float(values[4:].sum() / values.sum()), abs=1e-5)
        assert float((dense(cut, prefix) - truth).square().sum() / values.sum()) == pytest.approx(lost, abs=1e-5)


def test_a_file_has_one_dialect_and_core_reads_all_of_it(setting, tmp_path, caplog):
    model, routed = setting
    made, _ = steps_of(routed)
    baked, _ = bake(routed, None, made, EXACT)
    up, down = leaves(baked)
    begins = "lora_unet_" if baked.kohya else "transformer."
    assert all(prefix.startswith(begins) for prefix in baked.ranks) and not baked.left_out
    written = {f"{prefix}.{leaf}.weight" for prefix in baked.ranks for leaf in (up, down)}
    written |= {f"{prefix}.alpha" for prefix in baked.ranks} if baked.kohya else set()
    assert set(baked.tensors) == written
    save_file(baked.tensors, tmp_path / "again.safetensors")
    (again,) = loras_on(fused(model, (tmp_path / "again.safetensors", 1.0)))
    assert {t.key for t in (*again.deltas, *again.merged)} == {
        t.key for parent in loras_on(routed) for t in parent.deltas
    }
    with_file(model, baked, tmp_path / "baked.safetensors")
    assert "not loaded" not in caplog.text.lower()


@pytest.mark.parametrize("second", ["to_q", "all"])
def test_sliced_parents(tmp_path, record_property, second):
    """Two sliced files stay sliced; where the slices of one cross those of the other the names decide."""
    model = tiny.tiny_flux()
    width = model.model.model_config.unet_config["hidden_size"]
    torch.manual_seed(0)
    parts = [f"transformer.single_transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    slices = {"subject": parts, "style": parts}
    if second == "to_q":
        slices = {"subject": ["diffusion_model.single_blocks.0.linear1_qkv"], "style": parts[:1]}
    loras = {}
    for role, prefixes in slices.items():
        tensors = {}
        for prefix in prefixes:
            rows = 3 * width if prefix.endswith("linear1_qkv") else width
            tensors[f"{prefix}.lora_up.weight"] = torch.randn(rows, 3) * 0.3
            tensors[f"{prefix}.lora_down.weight"] = torch.randn(3, width) * width**-0.5
        path = tmp_path / f"{role}.safetensors"
        save_file(tensors, path)
        loras[role] = (path, 0.9)
    routed = fused(model, **loras, policy=KLSoft())
    made = tiny.sample(routed)
    baked, _ = bake(routed, None, made, EXACT)
    expected = set(slices["style"]) if second == "all" else {"lora_unet_single_blocks_0_linear1"}
    assert set(baked.ranks) == expected and not baked.left_out
    error = tiny.relative(tiny.sample(with_file(model, baked, tmp_path / "baked.safetensors")), made)
    record_property(f"sliced by {second}", error)
    assert error < 1e-5


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft", "dora_out_lora"])
def test_other_adapters_beside_a_lora(tmp_path, record_property, kind):
    """Dense deltas, also those that depend on the base weight."""
    model = tiny.tiny_flux()
    shapes = {key: shape for key, shape in tiny.layer_shapes(model).items() if "img_mlp" in key}
    other, lora = tmp_path / "other.safetensors", tiny.make_lora(tmp_path / "lora.safetensors", shapes, size=0.3)
    make_file(other, kind, shapes)
    routed = fused(model, (lora, 0.9), (other, 0.8), KLSoft())
    made = tiny.sample(routed)
    baked, _ = bake(routed, None, made, EXACT)
    assert not baked.left_out
    error = tiny.relative(tiny.sample(with_file(model, baked, tmp_path / "baked.safetensors")), made)
    record_property(f"{kind} beside a LoRA", error)
    assert tiny.relative(tiny.sample(model), made) > 1e-3 and error < 1e-4


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr_factored", "glora", "oft", "boft", "dora_out_lora", "diff"])
def test_what_one_file_has_alone_keeps_its_kind(tmp_path, record_property, kind, strength):
    """As small as it was, and what core makes of the parent; at other strengths where a tensor can take them."""
    model = tiny.tiny_flux()
    shapes = {key: shape for key, shape in tiny.layer_shapes(model).items() if "img_mlp" in key}
    path = make_file(tmp_path / "other.safetensors", kind, shapes)
    routed = fused(model, (path, strength))
    baked, _ = bake(routed, None, None, EXACT)
    live = tiny.sample(tiny.core_stacked(model, (path, strength)))
    error = tiny.relative(tiny.sample(with_file(model, baked, tmp_path / "baked.safetensors")), live)
    record_property(f"{kind} alone at {strength}", error)
    assert tiny.relative(tiny.sample(model), live) > 1e-3 and error < 1e-4
    keeps = strength == 1 or kind in ("loha", "lokr", "lokr_factored", "diff")
    assert len(baked.as_they_are) == (len(shapes) if keeps else 0)
    if keeps:
        assert baked.size <= 1.1 * path.stat().st_size
    plain, _ = bake(routed, None, None, BakeSettings(None, 8, torch.float32))
    assert not plain.as_they_are and 0 < max(plain.ranks.values()) <= 8


def test_a_dense_update_keeps_the_energy_that_is_asked_for(tmp_path):
    model = tiny.tiny_flux()
    shapes = {key: shape for key, shape in tiny.layer_shapes(model).items() if "img_mlp" in key}
    lora = tiny.make_lora(tmp_path / "lora.safetensors", shapes, size=0.3)
    routed = fused(model, (lora, 0.9), (make_file(tmp_path / "other.safetensors", "lokr", shapes), 0.8), Sum())
    whole, _ = bake(routed, None, None, EXACT)
    cut, _ = bake(routed, None, None, replace(EXACT, energy=0.9))
    assert cut.size < whole.size and whole.dense == set(whole.ranks) and not cut.dense
    for prefix, rank in cut.ranks.items():
        values = torch.linalg.svdvals(dense(whole, prefix)).square()
        kept = values.cumsum(0) / values.sum()
        assert kept[rank - 1] >= 0.9 - 1e-6 and (rank == 1 or kept[rank - 2] < 0.9 + 1e-6)
    thin = fused(model, (lora, 0.9), (tiny.make_lora(tmp_path / "two.safetensors", shapes, seed=3), 0.8), Sum())
    assert set(bake(thin, None, None, replace(EXACT, energy=0.5))[0].ranks.values()) == {8}, "low-rank sums stay whole"


def test_what_needs_a_base_weight_that_cannot_be_read_is_named(tmp_path):
    model = tiny.tiny_flux()
    shapes = {key: shape for key, shape in tiny.layer_shapes(model).items() if "img_mlp" in key}
    dora = make_file(tmp_path / "dora.safetensors", "dora_out_lora", dict(list(shapes.items())[:1]))
    lora = tiny.make_lora(tmp_path / "lora.safetensors", shapes, size=0.3)
    routed = fused(model, (lora, 0.9), (dora, 0.8), KLSoft())
    made = tiny.sample(routed)
    layers = attachment_of(routed).spec.layers
    for layer in layers:
        layer.read_weight = None
    baked, _ = bake(routed, None, made, EXACT)
    (shared,) = (layer.name for layer in layers if any(segment.shared for segment in layer.segments))
    assert list(baked.left_out) == [shared] and "cannot be read" in baked.left_out[shared]
    assert len(baked.ranks) == len(layers) - 1


def test_a_layer_that_never_ran_is_named(setting):
    """Its weights are not known: the file goes without it."""
    _, routed = setting
    made, _ = steps_of(routed)
    live = attachment_of(routed).live
    results = next(iter(live.kept))
    record = results.record
    results.record = replace(record, layers=record.layers[1:], weights=record.weights[:, 1:])
    baked, _ = bake(routed, None, made, EXACT)
    assert baked.left_out == {record.layers[0]: "it did not run while the picture was sampled"}
