"""A model of which core keeps only a part on the device, as on a card with little memory: the same picture."""

import comfy.model_management
import pytest

from lora_conductor.fusion.routing import NAMED
from lora_conductor.host.fusing import fused

from .. import tiny


@pytest.mark.parametrize("share", [0.0, 1 / 3])
@pytest.mark.parametrize("policy", ["sum", "kl_soft", "recommended", "craft", "knots", "tsv"])
def test_the_picture_is_that_of_a_model_loaded_whole(tmp_path, monkeypatch, policy, share):
    model = tiny.tiny_unet()
    files = [
        tiny.make_lora(tmp_path / f"{role}.safetensors", tiny.layer_shapes(model), seed=seed, size=0.2)
        for seed, role in enumerate(("subject", "style"))
    ]
    routed = fused(model, files[0], files[1], NAMED[policy])
    whole = tiny.sample(routed, steps=2, cfg=2.0)
    told = tiny.partly_loaded(monkeypatch, share)
    part = tiny.sample(routed, steps=2, cfg=2.0)
    comfy.model_management.unload_all_models()
    assert any(lowvram for lowvram, _ in told) and all(loaded <= share for _, loaded in told)
    assert tiny.relative(part, whole) < 1e-5
    assert tiny.relative(tiny.sample(model, steps=2, cfg=2.0), whole) > 1e-2
