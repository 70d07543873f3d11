"""Every path of the pack that reads or writes a file, with sockets, look-ups of names and new processes forbidden."""

import contextlib
import json
import socket
import sys
import types
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from lora_conductor.host.baking import BakeSettings, bake_to_file
from lora_conductor.host.guiding import GuidanceOptions
from lora_conductor.nodes.encoder_loader import MetricEncoderLoader
from lora_conductor.nodes.loader import DualLoRADynamicLoader
from lora_conductor.nodes.plan import LoadRoutingPlan, SaveRoutingPlan

from ..host import tiny, tiny_encoders
from ..host.guiding import guided

FORBIDDEN = ("socket.", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "urllib.")
_guard = {"closed": False, "tried": []}


def _refuse(event, arguments):
    if _guard["closed"] and event.startswith(FORBIDDEN):
        _guard["tried"].append(event)
        raise PermissionError(f"{event} while the network is closed")


sys.addaudithook(_refuse)  # below every library, and for good: it is let rest by `closed`


@contextlib.contextmanager
def closed_network():
    """Python's own record of what is attempted: also of what a library caught again."""
    _guard.update(closed=True, tried=[])
    try:
        yield _guard["tried"]
    finally:
        _guard["closed"] = False


def test_the_guard_sees_what_it_forbids():
    with closed_network() as tried:
        for attempt in (socket.socket, lambda: socket.getaddrinfo("localhost", 80)):
            with pytest.raises(PermissionError):
                attempt()
    assert [event.split(".")[0] for event in tried] == ["socket", "socket"]


@pytest.fixture
def folders(tmp_path):
    """The pack's kinds of model files in folders that ComfyUI knows."""
    for kind in ("loras", "clip_vision"):
        (tmp_path / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(tmp_path / kind))
    yield tmp_path
    for kind in ("loras", "clip_vision"):
        folder_paths.folder_names_and_paths[kind][0].remove(str(tmp_path / kind))


def write_transformers(folder):
    import transformers

    half = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**half, "vocab_size": 49408, "max_position_embeddings": 16}
    picture = {**half, "image_size": 64, "patch_size": 8}
    config = transformers.CLIPConfig(vision_config=picture, text_config=text, projection_dim=16)
    folder.mkdir()
    transformers.CLIPModel(config).save_pretrained(folder)


def write_csd(path):
    import open_clip

    visual = open_clip.CLIP(**tiny_encoders.OPEN_CLIP).visual
    weights = {f"backbone.{key}": value for key, value in visual.state_dict().items() if key != "proj"}
    weights |= {f"last_layer_{head}": torch.zeros(64, 8) for head in ("style", "content")}
    description = {"library": "csd", "config": tiny_encoders.OPEN_CLIP, "image_size": 64}
    description |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    save_file(weights, path, metadata={"lora_conductor.encoder": json.dumps(description)})


def test_loras_plans_and_bakes(folders, monkeypatch):
    monkeypatch.setattr(DualLoRADynamicLoader, "hidden", types.SimpleNamespace(unique_id="1"))
    monkeypatch.setattr(SaveRoutingPlan, "hidden", types.SimpleNamespace(unique_id="2", prompt={}))
    model = tiny.tiny_unet()
    shapes = tiny.layer_shapes(model)
    for seed, role in enumerate(("subject", "style")):
        tiny.make_lora(folders / "loras" / f"{role}.safetensors", shapes, seed=seed, size=0.2)
    with closed_network() as tried:
        loaded = DualLoRADynamicLoader.execute(model, "subject.safetensors", "style.safetensors", 1.0, 1.0).args[0]
        latent = {"samples": tiny.sample(loaded, steps=2)}
        plan, file = SaveRoutingPlan.execute(loaded, latent, "no_network/plan").args
        listed = Path(file).relative_to(folder_paths.get_output_directory()).as_posix()
        assert LoadRoutingPlan.execute(f"{listed} [output]").args[0].dumps() == plan.dumps()
        settings = BakeSettings(None, 4, torch.float16)
        baked, _ = bake_to_file(loaded, None, latent["samples"], settings, "no_network/bake", None, None)
        again = folders / "loras" / "baked.safetensors"
        again.write_bytes(baked.path.read_bytes())
        assert DualLoRADynamicLoader.execute(model, again.name, "style.safetensors", 1.0, 1.0).args[0] is not model
    assert not tried


def test_encoders_prompts_and_references(folders):
    folder = folders / "clip_vision"
    tiny_encoders.write_clip(folder / "clip.safetensors", text=True)
    tiny_encoders.write_dino(folder / "dino.safetensors")
    write_csd(folder / "csd.safetensors")
    write_transformers(folder / "hf")
    picture = tiny_encoders.smooth_picture(1)
    with closed_network() as tried:
        clip, dino, csd, whole = (
            MetricEncoderLoader.execute(name).args[0]
            for name in ("clip.safetensors", "dino.safetensors", "csd.safetensors", "hf/model.safetensors")
        )
        assert clip.prompts.embed("a fox").shape == (1, 64) and whole.prompts.embed("a fox").shape == (1, 16)
        parts = {"clip_encoder": csd, "dino_encoder": dino, "subject_image": picture, "style_image": picture}
        plan = guided.plan({**parts, "held_out_encoder": whole}, options=GuidanceOptions(decoder="latent RGB"))
        guided.run(tiny.world_flux(), plan, steps=3)
    assert not tried
