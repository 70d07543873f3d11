"""What must not change a picture, and what a run must leave behind: nothing."""

import gc
import weakref

import comfy.model_management
import comfy.samplers
import pytest
import torch

from lora_conductor.fusion.policies import POLICIES as POLICY_TYPES
from lora_conductor.fusion.policies import RECOMMENDED, Composite, KLSoft, Paper, Sum, Switch
from lora_conductor.host.core import ConductorError
from lora_conductor.host.fusing import attachment_of, fused, record_of_latent, set_policy

from .. import tiny
from ..sampling.ways import called

TOLERANCE = 1e-4  # of the output range, float32; other batch shapes sum in another order
POLICIES = pytest.mark.parametrize("policy", [Paper(), RECOMMENDED, KLSoft()], ids=["paper", "recommended", "kl_soft"])


@pytest.fixture(scope="module", params=[tiny.tiny_flux, tiny.tiny_unet], ids=["flux", "unet"])
def setting(request, tmp_path_factory):
    """A model, and the model with two LoRAs on it."""
    model = request.param()
    folder = tmp_path_factory.mktemp("loras")
    shapes = tiny.layer_shapes(model)
    files = {
        role: tiny.make_lora(folder / f"{role}.safetensors", shapes, seed=seed, size=0.2)
        for role, seed in (("subject", 1), ("style", 2))
    }
    return model, fused(model, **{role: (file, 0.8) for role, file in files.items()})


def snapshot(model) -> tuple[dict, dict, dict]:
    """Forwards set on modules, weights, and the patcher's bookkeeping."""
    modules = dict(model.model.named_modules())
    forwards = {n: m.__dict__["forward"] for n, m in modules.items() if "forward" in m.__dict__}
    weights = {n: w.clone() for n, w in model.model.state_dict().items()}
    return forwards, weights, dict(model.patches)


def assert_untouched(model, before):
    forwards, weights, patches = snapshot(model)
    assert forwards == before[0] == {}
    assert weights.keys() == before[1].keys() and all(torch.equal(weights[k], before[1][k]) for k in weights)
    assert patches == before[2]


@POLICIES
def test_batch_of_four_equals_four_of_one(setting, policy):
    model = set_policy(setting[1], policy)
    noise = torch.randn(4, *tiny.latent(model).shape[1:], generator=torch.Generator().manual_seed(7))
    kw = {"steps": 3, "cfg": 3.0}
    together = tiny.sample(model, batch=4, noise=noise, **kw)
    apart = torch.cat([tiny.sample(model, noise=noise[i : i + 1], **kw) for i in range(4)])
    assert tiny.relative(together, apart) < TOLERANCE


def test_what_a_patch_mixes_concerns_no_other_clone(tmp_path):
    """Behind HyperTile prompts run one by one; what looks at both prompts, on another clone, still gets both."""
    model = tiny.tiny_unet()
    shapes = tiny.layer_shapes(model)
    files = [tiny.make_lora(tmp_path / f"{seed}.safetensors", shapes, seed=seed, size=0.2) for seed in (1, 2)]
    routed = fused(model, *files, policy=KLSoft())

    def prompts_in_calls(of):
        seen, looked_at = set(), of.clone()

        def look(out, options):
            seen.add(len(options["cond_or_uncond"]))
            return out

        looked_at.set_model_attn2_output_patch(look)
        tiny.sample(looked_at, steps=2, cfg=2.0)
        return seen

    (tiled,) = called("HyperTile", model=routed, tile_size=32)
    assert prompts_in_calls(tiled) == {1, 2}  # that they are mixed is seen when they are
    assert prompts_in_calls(routed) == {2}


@POLICIES
def test_cond_and_uncond_together_equal_apart(setting, policy, monkeypatch):
    model = set_policy(setting[1], policy)
    batches = []
    monkeypatch.setattr(
        comfy.samplers,
        "cond_cat",
        lambda c, *a, _f=comfy.samplers.cond_cat, **k: batches.append(len(c)) or _f(c, *a, **k),
    )
    kw = {"steps": 3, "cfg": 3.0, "batch": 2}
    together = tiny.sample(model, **kw)
    assert set(batches) == {2}
    # Core packs them by free memory; a model that claims to need all of it is run one condition at a time.
    batches.clear()
    monkeypatch.setattr(model.model, "memory_required", lambda *a, **k: 1e30)
    apart = tiny.sample(model, **kw)
    assert set(batches) == {1}
    assert tiny.relative(apart, together) < TOLERANCE


def test_same_inputs_same_picture_bit_for_bit(setting):
    kw = {"steps": 3, "cfg": 3.0, "sampler_name": "dpmpp_2m"}
    assert torch.equal(tiny.sample(setting[1], **kw), tiny.sample(setting[1], **kw))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "uni_pc", "lcm"])
def test_record_has_every_layer_and_step(setting, sampler):
    model = set_policy(setting[1], KLSoft())
    samples = tiny.sample(model, steps=4, cfg=3.0, batch=2, sampler_name=sampler)
    record = record_of_latent(model, samples)
    shared = [s.name for layer in attachment_of(model).spec.layers for s in layer.segments if s.shared]
    assert sorted(record.layers) == sorted(shared)
    assert record.weights.shape == (2, len(shared), 4)
    assert not record.weights[:, :, 0].isnan().any()
    torch.testing.assert_close(record.weights.sum(0).nan_to_num(1.0), torch.ones(len(shared), 4, dtype=torch.float64))


def test_record_belongs_to_its_latent(setting):
    model = set_policy(setting[1], KLSoft())
    one, two = (tiny.sample(model, steps=2, seed=seed) for seed in (1, 2))
    assert not torch.equal(record_of_latent(model, one).scores, record_of_latent(model, two).scores)
    with pytest.raises(ConductorError, match="did not make this latent"):
        record_of_latent(model, one + 1)


def test_a_good_run_leaves_nothing(setting):
    model, routed = setting
    before = snapshot(model)
    plain = tiny.sample(model)
    tiny.sample(routed, steps=2)
    assert_untouched(model, before)
    assert torch.equal(tiny.sample(model), plain)


@pytest.mark.parametrize("fails", ["interrupt", "error in a layer", "error in a callback"])
def test_an_ended_run_leaves_nothing_and_the_next_is_good(setting, fails, monkeypatch):
    model, routed = setting
    before, good = snapshot(model), tiny.sample(routed, steps=3)

    def stop(step, *rest):
        if fails == "interrupt":
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        kw = {"callback": stop}
        if fails == "error in a layer":
            layers = list(attachment_of(routed).spec.layers)
            patch.setattr(layers[len(layers) // 2], "fuse", lambda *a: stop(0))
            kw = {}
        with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
            tiny.sample(routed, steps=3, **kw)
    comfy.model_management.interrupt_current_processing(False)
    assert_untouched(model, before)
    live = attachment_of(routed).live
    assert not live._open and all(site.run is site.call is None for site in live._sites.values())
    assert torch.equal(tiny.sample(routed, steps=3), good)


def test_a_dropped_model_frees_its_deltas_at_once(setting):
    """No cycle holds the deltas, or their place in core's list of loaded models, until a garbage collection."""
    loras = {lora.role: (lora.path, lora.strength) for lora in attachment_of(setting[1]).spec.loras}
    gc.collect()
    gc.disable()
    try:
        model = fused(setting[0], **loras)
        tiny.sample(model)
        bank = weakref.ref(attachment_of(model).spec.bank.model)
        del model
        assert bank() is None
    finally:
        gc.enable()


def test_another_packs_forward_is_kept(setting):
    """A forward that somebody else set on a layer runs inside ours and is back in place afterwards."""
    model, routed = setting
    name = next(iter(attachment_of(routed).spec.layers)).name
    module = model.model.get_submodule(name)
    calls = []
    original = module.forward

    def theirs(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    plain = tiny.sample(routed)
    module.forward = theirs
    try:
        assert torch.equal(tiny.sample(routed), plain)
        assert module.__dict__["forward"] is theirs and calls
    finally:
        del module.forward


@pytest.mark.parametrize("compiled_first", [True, False])
def test_torch_compile_gives_the_same_picture_and_compiles_once(setting, compiled_first):
    """Core's own compile wrapper, on either side of ours. (The eager backend: what is tested is the tracing.)"""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    model, routed = setting
    plain = tiny.sample(routed, steps=2)
    compiled = routed.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    if compiled_first:
        ours = {k: v for k, v in compiled.wrappers["apply_model"].items() if k.startswith("lora_conductor")}
        compiled.wrappers["apply_model"] = {
            k: v for k, v in compiled.wrappers["apply_model"].items() if k not in ours
        } | ours
    first = tiny.sample(compiled, steps=2)
    frames = counters["frames"]["total"]
    again = tiny.sample(compiled, steps=2)
    assert tiny.relative(first, plain) < TOLERANCE and torch.equal(first, again)
    assert counters["frames"]["total"] == frames, "the second run was compiled again"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_stored_in_low_precision_is_no_worse_than_cores_merge(tmp_path, dtype):
    """fp8 weights say nothing about the dtype to compute in; core's merge has to round the sum back to fp8."""
    exact = tiny.tiny_flux()
    shapes = tiny.layer_shapes(exact)
    paths = [tiny.make_lora(tmp_path / f"{i}.safetensors", shapes, seed=i, size=0.1) for i in (1, 2)]
    truth = tiny.sample(tiny.core_stacked(exact, (paths[0], 0.8), (paths[1], 0.6)))
    low = tiny.tiny_flux(dtype)
    live = fused(low, (paths[0], 0.8), (paths[1], 0.6), Sum(), always_live=True)
    ours = tiny.relative(tiny.sample(live), truth)
    core = tiny.relative(tiny.sample(tiny.core_stacked(low, (paths[0], 0.8), (paths[1], 0.6))), truth)
    print(f"{dtype}: ours {ours:.1e}, core {core:.1e}")
    assert ours <= 1.1 * core


@pytest.mark.parametrize("name", sorted(POLICY_TYPES))
def test_loras_with_no_layer_in_common_are_both_whole(setting, tmp_path, name):
    """As the halves of a B-LoRA are: nobody fights, so every policy is the plain sum."""
    model = setting[0]
    shapes = list(tiny.layer_shapes(model).items())
    files = {
        role: tiny.make_lora(tmp_path / f"{role}.safetensors", dict(shapes[i::2]), seed=i)
        for i, role in enumerate(("subject", "style"))
    }
    if POLICY_TYPES[name] in (Switch, Composite):
        pytest.skip("runs the whole model with one LoRA at a time")
    routed = fused(model, **files, policy=POLICY_TYPES[name]())
    expected = tiny.sample(tiny.core_stacked(model, *((file, 1.0) for file in files.values())))
    assert tiny.relative(tiny.sample(routed), expected) < 1e-5
