"""Public bug reports of this field, tried here: docs/public-reports.md has the list, these are the right answers."""

from __future__ import annotations

import gc
import logging
import weakref

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_conductor.fusion.policies import RECOMMENDED, KLSoft, Sum
from lora_conductor.host.core import ConductorError, model_path
from lora_conductor.host.fusing import fused, load_loras
from lora_conductor.host.loras import choices_of_stack

from . import tiny

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def alone():
    tiny.forget_other_models()


@pytest.fixture(scope="module", params=["flux", "unet"])
def model(request):
    return {"flux": tiny.tiny_flux, "unet": tiny.tiny_unet}[request.param]()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    return loras(model, tmp_path_factory.mktemp("loras"))


def loras(model, folder):
    shapes = tiny.layer_shapes(model)
    return [tiny.make_lora(folder / f"{seed}.safetensors", shapes, seed=seed, size=0.3) for seed in (1, 2)]


def changed(path, to, change):
    save_file(change(load_file(path)), to)
    return to


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_files_stored_in_fp8(model, files, tmp_path, dtype):
    """nunchaku 245: "mul_cpu_reduced_float" not implemented for 'Float8_e4m3fn'."""

    def to_fp8(tensors):
        return {key: value.to(dtype) if "alpha" not in key else value for key, value in tensors.items()}

    small = [changed(path, tmp_path / path.name, to_fp8) for path in files]
    core = tiny.sample(tiny.core_stacked(model, (small[0], 0.8), (small[1], 0.6)))
    ours = fused(model, (small[0], 0.8), (small[1], 0.6), policy=Sum(), always_live=True)
    assert tiny.relative(tiny.sample(ours), core) < TOLERANCE
    assert bool(tiny.sample(fused(model, *small)).isfinite().all())


def test_stacks_from_another_system(model, files, tmp_path, monkeypatch):
    """ComfyUI 3343, lora-dataset-studio 21: a Windows path in a workflow is not found on Linux, and the other way."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    folder = tmp_path / "people" / "mine"
    folder.mkdir(parents=True)
    for name, path in zip(("cat", "ink"), files, strict=True):
        (folder / f"{name}.safetensors").write_bytes(path.read_bytes())
    names = ("people\\mine\\cat.safetensors", "people/mine/ink.safetensors")
    choices = [
        choice
        for name, role in zip(names, ("subject", "style"), strict=True)
        for choice in choices_of_stack([(name, 0.8, 0.8)], role, role)
    ]
    both, _, _ = load_loras(model, None, choices)
    assert torch.equal(tiny.sample(both), tiny.sample(fused(model, (files[0], 0.8), (files[1], 0.8))))
    with pytest.raises(ConductorError, match="is not in ComfyUI's loras folder"):
        model_path("loras", "people\\..\\..\\mine\\cat.safetensors", "subject LoRA")


def test_keys_that_the_model_has_no_more(model, files, tmp_path, monkeypatch):
    """WanVideoWrapper 889 and 1710: files of the version before, or of kinds that core does not load (ComfyUI 6381)."""
    extra = {
        "diffusion_model.img_emb.proj.1.lora_down.weight": torch.zeros(4, 8),
        "diffusion_model.img_emb.proj.1.lora_up.weight": torch.zeros(8, 4),
        "diffusion_model.img_emb.proj.1.diff_b": torch.zeros(8),
        "lora_unet_up_blocks_9_attentions_2_transformer_blocks_0_attn1_to_k.on_input": torch.zeros(()),
        "diffusion_model.blocks.7.lora_A.0.weight": torch.zeros(4, 8),
    }
    path = changed(files[0], tmp_path / "older.safetensors", lambda tensors: tensors | extra)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    choices = choices_of_stack([("older.safetensors", 1.0, 1.0)], "subject", "subject_stack")
    both, _, report = load_loras(model, None, choices)
    core = tiny.sample(tiny.core_stacked(model, (path, 1.0)))
    assert tiny.relative(tiny.sample(both), core) < TOLERANCE
    assert "img_emb" in report and str(len(extra)) in report, report


@pytest.mark.parametrize("policy", [RECOMMENDED, KLSoft()], ids=["recommended", "kl_soft"])
@pytest.mark.parametrize("batch", [1, 2])
def test_tiles_in_one_call(model, files, policy, batch):
    """RES4LYF 205 (tiled upscalers): a call has the rows of two tiles, each of all prompts."""

    def tiles(apply_model, args, together):
        x, t, c = args["input"], args["timestep"], args["c"]
        halves = [half.contiguous() for half in x.chunk(2, -1)]
        if not together:
            return torch.cat([apply_model(half, t, **c) for half in halves], -1)
        twice = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) and len(v) == len(x) else v for k, v in c.items()}
        return torch.cat(apply_model(torch.cat(halves), torch.cat([t, t]), **twice).chunk(2), -1)

    pictures = []
    for together in (True, False):
        ours = fused(model, *files, policy=policy)
        ours.set_model_unet_function_wrapper(lambda f, args, together=together: tiles(f, args, together))
        pictures.append(tiny.sample(ours, steps=3, cfg=3.0, batch=batch))
    assert tiny.relative(*pictures) < TOLERANCE


@pytest.mark.parametrize("policy", [RECOMMENDED, KLSoft()], ids=["recommended", "kl_soft"])
def test_regions_that_only_attention_sees(tmp_path, monkeypatch, policy):
    """ppm 40 (Attention Couple with three regions): keys and values have other rows than the call."""
    unet = tiny.tiny_unet()
    regions = [torch.randn(1, 4, 64) for _ in range(3)]

    def couple(q, k, v, options):
        rows = len(q) // len(options["cond_or_uncond"])
        queries, keys = [], []
        for i, kind in enumerate(options["cond_or_uncond"]):
            own_q, own_k = q[i * rows : (i + 1) * rows], k[i * rows : (i + 1) * rows]
            contexts = [own_k] if kind == 1 else [region.expand(rows, -1, -1) for region in regions]
            queries.append(own_q.repeat(len(contexts), 1, 1))
            keys.append(torch.cat(contexts))
        return torch.cat(queries), torch.cat(keys), torch.cat(keys)

    def merge(out, options):
        parts = [1 if kind == 1 else len(regions) for kind in options["cond_or_uncond"]]
        rows = len(out) // sum(parts)
        split = out.split([rows * n for n in parts])
        return torch.cat([part.unflatten(0, (n, rows)).mean(0) for part, n in zip(split, parts, strict=True)])

    ours = fused(unet, *loras(unet, tmp_path), policy=policy)
    ours.set_model_attn2_patch(couple)
    ours.set_model_attn2_output_patch(merge)
    together = tiny.sample(ours, steps=3, cfg=3.0)
    monkeypatch.setattr(unet.model, "memory_required", lambda *a, **k: 1e30)
    assert tiny.relative(tiny.sample(ours, steps=3, cfg=3.0), together) < TOLERANCE


def test_a_model_that_nobody_needs_any_more_is_freed(model, files, caplog):
    """ComfyUI 6390: "Potential memory leak detected with model Flux"."""
    ours = fused(model, *files)
    tiny.sample(ours, steps=2, cfg=2.0)
    kept = weakref.ref(ours)
    gc.disable()
    try:
        del ours
        assert kept() is None, "only a full collection would free it"
    finally:
        gc.enable()
    with caplog.at_level(logging.WARNING):
        comfy.model_management.cleanup_models_gc()
    assert "memory leak" not in caplog.text.lower()


def test_two_models_take_turns(model, files):
    """SA-Nodes-QQ 6 (Wan 2.2): LoRAs of the second model are not applied, or those of the first still are."""
    other = tiny.tiny_flux() if "flux" in type(model.model).__name__.lower() else tiny.tiny_unet()
    first, second = fused(model, *files), fused(other, files[1], files[0])

    def in_two_stages(high, low):
        x = tiny.sample(high, steps=4, cfg=2.0, last_step=2)
        return tiny.sample(low, steps=4, cfg=2.0, start_step=2, noise=torch.zeros_like(x), latent_image=x)

    one = in_two_stages(first, second)
    assert not torch.equal(in_two_stages(first, fused(other, (files[1], 0.0))), one)
    in_two_stages(second, first)
    assert torch.equal(in_two_stages(first, second), one)
    comfy.model_management.unload_all_models()
    assert torch.equal(in_two_stages(first, second), one)


def test_blocks_compiled_one_by_one(model, files):
    """KJNodes 234 and 289: LoRAs have no effect once blocks are compiled, or the first ones stay after a change."""
    of_flux, of_unet = ("double_blocks.0", "single_blocks.0"), ("middle_block.1.transformer_blocks.0",)

    def compiled(ours):
        for block in of_flux if hasattr(ours.model.diffusion_model, "double_blocks") else of_unet:
            name = f"diffusion_model.{block}"
            ours.add_object_patch(name, torch.compile(ours.get_model_object(name), backend="eager"))
        return ours

    for chosen in (files, files[::-1]):
        plain = tiny.sample(fused(model, *chosen), steps=2, cfg=2.0)
        for ours in (compiled(fused(model, *chosen)), fused(compiled(model.clone()), *chosen)):
            assert tiny.relative(tiny.sample(ours, steps=2, cfg=2.0), plain) < TOLERANCE


def test_core_hooks_beside_ours(model, files, tmp_path):
    """prompt-control 103, ComfyUI 6082: a third LoRA on a prompt by core's hooks, over part of the steps."""
    third = tiny.make_lora(tmp_path / "third.safetensors", tiny.layer_shapes(model), seed=3, size=0.3)
    sd = load_file(third)
    pictures = []
    for ours in (
        fused(model, (files[0], 0.5), (files[1], 0.5), policy=Sum(), always_live=True),
        tiny.core_stacked(model, (files[0], 0.5), (files[1], 0.5)),
    ):
        hooks = comfy.hooks.create_hook_lora(sd, 0.7, 0.0)
        keyframes = comfy.hooks.HookKeyframeGroup()
        keyframes.add(comfy.hooks.HookKeyframe(1.0, start_percent=0.0))
        keyframes.add(comfy.hooks.HookKeyframe(0.0, start_percent=0.5))
        hooks.set_keyframes_on_hooks(keyframes)
        positive = tiny.conditioning(model, 1)
        positive = [[context, options | {"hooks": hooks}] for context, options in positive]
        pictures.append(tiny.sample(ours, steps=4, cfg=2.0, positive=positive))
    without = tiny.sample(tiny.core_stacked(model, (files[0], 0.5), (files[1], 0.5)), steps=4, cfg=2.0)
    assert tiny.relative(pictures[0], pictures[1]) < TOLERANCE
    assert tiny.relative(without, pictures[1]) > 0.01


def test_another_strength_patches_nothing_anew(model, files, monkeypatch):
    """prompt-control 47, ComfyUI 14580: every change of a LoRA loads the whole model anew."""
    patched = []
    own = comfy.model_patcher.ModelPatcher.patch_weight_to_device
    monkeypatch.setattr(
        comfy.model_patcher.ModelPatcher,
        "patch_weight_to_device",
        lambda self, key, *a, **k: patched.append(key) or own(self, key, *a, **k),
    )

    def count(ours):
        patched.clear()
        tiny.sample(ours)
        return sum(key.startswith("diffusion_model") for key in patched if isinstance(key, str))

    count(fused(model, (files[0], 1.0), (files[1], 1.0)))
    assert count(fused(model, (files[0], 0.5), (files[1], 1.0))) == 0
    count(tiny.core_stacked(model, (files[0], 1.0)))
    assert count(tiny.core_stacked(model, (files[0], 0.5))) > 0, "what core's own loader costs is not seen"
