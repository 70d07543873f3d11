"""Inputs that are accepted and are hardly meant: an encoder in the other's socket, a picture in another range."""

import logging

import pytest
import torch

from lora_conductor.host.core import ConductorError
from lora_conductor.host.vision import load_metric_encoder, open_encoder, picture_of

from .. import tiny_encoders


def warnings(caplog):
    return [record.message for record in caplog.records if record.name.startswith("lora_conductor")]


@pytest.mark.parametrize("kind", ["ours", "core"])
def test_a_clip_encoder_in_the_dino_socket(kind, tmp_path, caplog):
    if kind == "ours":
        clip = load_metric_encoder(str(tiny_encoders.write_clip(tmp_path / "clip.safetensors")))
        dino = load_metric_encoder(str(tiny_encoders.write_dino(tmp_path / "dino.safetensors")))
    else:
        clip = tiny_encoders.core_clip_vision("clip_vision_model", tmp_path)
        dino = tiny_encoders.core_clip_vision("dinov2", tmp_path, patch_size=14, image_size=518)
    with caplog.at_level(logging.WARNING):
        open_encoder(clip, "clip_encoder").close()
        open_encoder(dino, "dino_encoder").close()
        assert not warnings(caplog)
        for _ in range(2):
            open_encoder(clip, "dino_encoder").close()
    (message,) = warnings(caplog)
    assert message.startswith("LoRA Conductor: dino_encoder: this is a CLIP-type encoder")


def test_gram_features_of_a_clip_encoder_are_meant(tmp_path, caplog):
    path = tiny_encoders.write_clip(tmp_path / "clip.safetensors")
    open_encoder(load_metric_encoder(str(path), features="gram"), "dino_encoder").close()
    assert not warnings(caplog)


def test_a_picture_of_0_to_255(caplog):
    picture = torch.rand(1, 16, 16, 3)
    picture_of("subject_image", picture * 1.2)
    assert not warnings(caplog)
    picture_of("subject_image", picture * 255)
    (message,) = warnings(caplog)
    assert "subject_image" in message and "Divide by 255" in message


def test_a_pickle_with_code_is_refused_without_advice_to_run_it(tmp_path):
    """torch's own error advises weights_only=False."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    torch.save({"visual.proj": torch.zeros(1), "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ConductorError, match=r"evil\.pt.*more than tensors") as caught:
        load_metric_encoder(str(tmp_path / "evil.pt"))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "\xff", '"x"'])
def test_a_config_json_that_is_none_is_named(text, tmp_path):
    path = tiny_encoders.write_clip(tmp_path / "clip.safetensors")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConductorError, match=r"config\.json beside clip\.safetensors"):
        load_metric_encoder(str(path))
