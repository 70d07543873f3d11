"""A baked file in a real pipeline of diffusers: the same prediction as ComfyUI makes with it."""

from __future__ import annotations

import logging

import comfy.utils
import diffusers
import pytest
import torch
from safetensors.torch import save_file

from lora_conductor.fusion.policies import KLSoft
from lora_conductor.host.baking import BakeSettings, bake
from lora_conductor.host.fusing import fused

from .. import tiny
from ..families.catalogue import FAMILIES
from ..families.family import build
from ..families.family import sample as family_sample
from .diffusers_models import DIFFUSERS


@pytest.fixture(scope="module")
def core():
    return build(FAMILIES["SDXL"])


def pipeline_of(core):
    """Diffusers' SDXL pipeline around a UNet with the weights of ComfyUI's."""
    unet = diffusers.UNet2DConditionModel(
        **DIFFUSERS["SDXL"].config,
        sample_size=8,
        use_linear_projection=core.model.model_config.unet_config["use_linear_in_transformer"],
    )
    weights = core.model.diffusion_model.state_dict()
    names = comfy.utils.unet_to_diffusers(core.model.model_config.unet_config)
    theirs = {
        theirs.replace("class_embedding", "add_embedding"): weights[ours]
        for theirs, ours in names.items()
        if ours in weights and theirs.replace("class_embedding", "add_embedding") in unet.state_dict()
    }
    missing, unexpected = unet.load_state_dict(theirs, strict=False)
    assert not missing and not unexpected
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return diffusers.StableDiffusionXLPipeline(
        **parts, unet=unet.eval(), scheduler=diffusers.EulerDiscreteScheduler(), force_zeros_for_empty_prompt=False
    )


def test_sdxl(core, tmp_path, caplog, record_property):
    shapes = {key: shape for key, shape in tiny.layer_shapes(core).items() if "label_emb" not in key}
    paths = [tiny.make_lora(tmp_path / f"{i}.safetensors", shapes, rank=2 + i, seed=i, size=0.3) for i in range(2)]
    routed = fused(core, *((path, 0.8) for path in paths), policy=KLSoft())
    made = family_sample(FAMILIES["SDXL"], routed)
    baked, _ = bake(routed, None, made, BakeSettings(dtype=torch.float32))
    save_file(baked.tensors, tmp_path / "baked.safetensors")

    pipeline = pipeline_of(core)
    x, context, pooled = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 48), torch.randn(1, 32)
    sizes, time = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]), torch.tensor([500.0])
    y = torch.cat([pooled, pipeline.unet.add_time_proj(sizes.flatten()).reshape(1, -1)], dim=1)

    def theirs():
        added = {"text_embeds": pooled, "time_ids": sizes}
        with torch.no_grad():
            return pipeline.unet(x, time, encoder_hidden_states=context, added_cond_kwargs=added).sample

    def ours(*loras):
        patched = tiny.core_stacked(core, *loras)
        patched.patch_model()
        try:
            with torch.no_grad():
                return patched.model.diffusion_model(x, time, context=context, y=y)
        finally:
            patched.unpatch_model()

    plain = ours()
    assert tiny.relative(theirs(), plain) < 1e-5, "the two models are the same"
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        pipeline.load_lora_weights(str(tmp_path), weight_name="baked.safetensors")
    finally:
        logger.removeHandler(caplog.handler)
    theirs_said = (record for record in caplog.records if record.name.startswith("diffusers"))
    said = [record.getMessage() for record in theirs_said if record.levelno >= logging.WARNING]
    # Of every file without a part for the text encoders, which this pipeline does not have.
    usual = "No LoRA keys associated to NoneType found with the prefix='text_encoder"
    assert [line for line in said if usual not in line] == []
    expected = ours((tmp_path / "baked.safetensors", 1.0))
    error = tiny.relative(theirs(), expected)
    record_property("SDXL-shaped file in diffusers against ComfyUI", error)
    assert tiny.relative(plain, expected) > 1e-2 and error < 1e-5
