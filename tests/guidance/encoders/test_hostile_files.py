"""Encoder files and folders made to do harm: nothing in them runs, nothing is looked up, and every refusal is named."""

import json
import socket

import pytest
from safetensors.torch import load_file

from lora_conductor.guidance.encoders import (
    EncoderFileError,
    TokenizerFolders,
    build_from_file,
    build_text_from_file,
)

from .test_encoders import TEXT, VISION, metadata
from .test_text_towers import CLIP_TOKENIZER, OPEN_CLIP

FILE = "pretty.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Sockets and look-ups of names are recorded and fail; a test in which one was tried fails, whatever caught it."""
    tried = []

    def refuse(*arguments, **named):
        tried.append(arguments)
        raise OSError("the network is closed")

    for name in ("socket", "getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    yield tried
    assert not tried


@pytest.fixture
def folder_with_code(tmp_path):
    """A tokenizer's folder with Python beside it that leaves a mark when it runs."""
    mark = tmp_path / "mark"
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in CLIP_TOKENIZER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\n"
        "from transformers import CLIPTokenizer as Evil\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder, mark


def with_text(**changes):
    return metadata("open_clip", {**OPEN_CLIP, "text_cfg": {**OPEN_CLIP["text_cfg"], **changes}})


def open_clip_weights():
    import open_clip

    return open_clip.CLIP(**OPEN_CLIP).state_dict()


@pytest.mark.parametrize("settings", [{"trust_remote_code": True}, {}])
def test_python_beside_an_open_clip_file_does_not_run(settings, folder_with_code, monkeypatch):
    folder, mark = folder_with_code
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what the library asks where nothing is said
    described = with_text(hf_tokenizer_name="some/name", tokenizer_kwargs=settings)
    with pytest.raises(EncoderFileError, match="trust_remote_code" if settings else "tokenizer_class"):
        build_text_from_file(open_clip_weights(), described, file_name=FILE, folders=TokenizerFolders(folder))
    assert not mark.exists()


def transformers_folder(tmp_path, name="CLIPModel"):
    import transformers

    vocabulary = {"vocab_size": 49408, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(vision_config=VISION, text_config={**TEXT, **vocabulary}, projection_dim=16)
    model = getattr(transformers, name)(config)
    model.save_pretrained(tmp_path)
    return load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())


def test_python_beside_a_transformers_file_does_not_run(folder_with_code, monkeypatch):
    folder, mark = folder_with_code
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    weights, config = transformers_folder(folder)
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderFileError, match="tokenizer_class"):
        build_text_from_file(
            weights, None, "transformers", config=config, file_name=FILE, folders=TokenizerFolders(folder)
        )
    assert build_from_file(weights, None, config=config).reads_text  # the half for pictures needs none of it
    assert not mark.exists()
