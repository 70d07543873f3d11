"""Encoder files and folders made to do harm: nothing in them runs, nothing is looked up, and every refusal is named."""

import json
import socket
import time

import pytest
import torch
from safetensors.torch import load_file

from lora_conductor.guidance.encoders import (
    EncoderFileError,
    TokenizerFolders,
    build_from_file,
    build_text_from_file,
)

from .test_encoders import OPEN_CLIP as PICTURES_ONLY
from .test_encoders import TEXT, TIMM, VISION, metadata
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


def test_names_of_tokenizers_that_are_read_still(tmp_path):
    """The allow-list holds what libraries themselves write."""
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(CLIP_TOKENIZER))
    tokenizer.save_pretrained(tmp_path)
    described = with_text(hf_tokenizer_name="some/name", tokenizer_kwargs={"clean": "canonicalize"})
    tower = build_text_from_file(open_clip_weights(), described, folders=TokenizerFolders(tmp_path))
    assert tower.embed("a fox").shape == (1, 24)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_map", {"AutoTokenizer": ["evil.Evil", None]}),
        ("tokenizer_class", "pipeline"),
        ("vocab_file", "/etc/passwd"),
        ("sp_model_kwargs", {"model_file": "/etc/passwd"}),
        ("init_inputs", ["x"]),
    ],
)
def test_tokenizer_settings_that_lead_elsewhere_are_named(name, value, folder_with_code):
    folder, mark = folder_with_code
    (folder / "tokenizer_config.json").write_text(json.dumps({name: value}))
    described = with_text(hf_tokenizer_name="some/name")
    with pytest.raises(EncoderFileError, match=f"pretty.*tokenizer_config.json beside it sets {name}"):
        build_text_from_file(open_clip_weights(), described, file_name=FILE, folders=TokenizerFolders(folder))
    assert not mark.exists()


def open_clip_case(**vision):
    config = {**PICTURES_ONLY, "vision_cfg": {**PICTURES_ONLY["vision_cfg"], **vision}}
    return {"visual.proj": torch.zeros(32, 32)}, metadata("open_clip", config)


def timm_case(**arguments):
    weights = {"patch_embed.proj.weight": torch.zeros(32, 3, 8, 8)}
    return weights, metadata("timm", {**TIMM, "kwargs": {**TIMM["kwargs"], **arguments}})


def transformers_case(kind, **settings):
    return {"a": torch.zeros(8)}, None, "auto", "", {"model_type": kind, **settings}


NETWORK = {
    "open_clip's timm from the hub": (open_clip_case(timm_model_name="hf-hub:some/model"), "timm_model_name"),
    "open_clip's timm from a folder": (open_clip_case(timm_model_name="local-dir:/tmp"), "timm_model_name"),
    "another field of open_clip": (open_clip_case(pretrained="x"), r"vision_cfg\.\"pretrained\""),
    "timm's name": ((timm_case()[0], metadata("timm", {"name": "hf-hub:some/model"})), "no model named"),
    "timm's checkpoint": (timm_case(checkpoint_path="/etc/passwd"), "checkpoint_path"),
    "timm's own weights": (timm_case(pretrained_cfg={"hf_hub_id": "some/model"}), "pretrained_cfg"),
    "timm's overlay": (timm_case(pretrained_cfg_overlay={"url": "http://x"}), "pretrained_cfg_overlay"),
    "timm's features": (timm_case(features_only=True), "features_only"),
    "timm's cache": (timm_case(cache_dir="/tmp"), "cache_dir"),
    "timm's layers by path": (timm_case(norm_layer="os.path"), "norm_layer"),
    "dpt": (transformers_case("dpt", use_pretrained_backbone=True, backbone="resnet18"), '"dpt"'),
    "maskformer": (transformers_case("maskformer", use_pretrained_backbone=True, backbone="resnet18"), '"maskformer"'),
    "timm_wrapper": (transformers_case("timm_wrapper", architecture="hf-hub:some/model"), '"timm_wrapper"'),
    "a backbone in a vit": (transformers_case("vit", use_pretrained_backbone=True), "use_pretrained_backbone"),
    "attention from the hub": (transformers_case("vit", _attn_implementation="some/kernel"), "_attn_implementation"),
    "an activation by path": (transformers_case("vit", hidden_act="some/kernel"), "hidden_act"),
    "quantized elsewhere": (transformers_case("vit", quantization_config={"quant_method": "x"}), "quantization_config"),
}


@pytest.mark.parametrize(("case", "message"), NETWORK.values(), ids=NETWORK)
def test_what_would_be_taken_from_elsewhere_is_refused_by_name(case, message):
    with pytest.raises(EncoderFileError, match=message) as caught:
        build_from_file(*case, file_name=FILE)
    assert FILE in str(caught.value)


WRONG = {
    "a width that is not in the file": (open_clip_case(width=20_000, head_width=100), "far larger than the file"),
    "a width no network has": (open_clip_case(width=10**30), "width"),
    "a width in words": (open_clip_case(width="64"), "width"),
    "many layers": (open_clip_case(layers=10**7), "layers"),
    "many stages": (open_clip_case(layers=[100] * 6), "layers"),
    "no patches": (open_clip_case(patch_size=0), "patch_size"),
    "heads that do not divide": (open_clip_case(head_width=7), "cannot be built|does not"),
    "a large picture": (open_clip_case(image_size=10**6), "image_size"),
    "no vision_cfg": (({"visual.proj": torch.zeros(1)}, metadata("open_clip", {"embed_dim": 8})), "vision_cfg"),
    "a config in words": (({"visual.proj": torch.zeros(1)}, metadata("open_clip", "x")), "config"),
    "timm's width": (timm_case(embed_dim=20_000), "far larger than the file"),
    "timm's depth": (timm_case(depth=10**7), "depth"),
    "timm's words": (timm_case(embed_dim="x"), "cannot be built"),
    "timm's number": (({"a": torch.zeros(1)}, metadata("timm", {"name": 7})), "does not say its architecture"),
    "transformers' width": (transformers_case("vit", hidden_size=20_000, num_attention_heads=10), "far larger"),
    "transformers' layers": (transformers_case("vit", num_hidden_layers=10**7), "num_hidden_layers"),
    "transformers' words": (transformers_case("vit", hidden_size="x"), "cannot be built"),
    "a vision_config in words": (transformers_case("clip", vision_config="x"), "vision_config"),
    "a type in numbers": (transformers_case(["vit"]), "model_type|no image encoder"),
    "a preprocessor in words": (transformers_case("vit", **VISION, preprocessor="x"), "preprocessor|does not hold"),
}


@pytest.mark.parametrize(("case", "message"), WRONG.values(), ids=WRONG)
def test_descriptions_that_no_file_can_have_are_refused_at_once(case, message, record_property):
    import open_clip  # noqa: F401 - the time is not for importing it
    import timm  # noqa: F401
    import transformers

    transformers.ViTModel, transformers.CLIPModel  # noqa: B018 - they are imported when first named
    start = time.process_time()
    with pytest.raises(EncoderFileError, match=message) as caught:
        build_from_file(*case, file_name=FILE)
    assert FILE in str(caught.value)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0, 0, 0]}, "std = "),
        ({"std": [0.5, 0.5]}, "std = "),
        ({"std": "x"}, "std = "),
        ({"mean": [float("nan"), 0, 0]}, "mean = "),
        ({"mean": [float("inf"), 0, 0]}, "mean = "),
        ({"mean": {"r": 1}}, "mean = "),
        ({"image_size": 0}, "image_size = 0"),
        ({"image_size": 10**9}, "image_size = "),
        ({"image_size": "32"}, "image_size = "),
        ({"image_size": 33.5}, "image_size = "),
        ({"image_size": 48}, "does not read pictures of 48 x 48"),
    ],
)
def test_preprocessing_that_no_network_has_is_named(changes, message):
    import timm

    weights = timm.create_model(TIMM["name"], num_classes=0, **TIMM["kwargs"]).state_dict()
    with pytest.raises(EncoderFileError, match=f"pretty.*{message}"):
        build_from_file(weights, metadata("timm", TIMM, **changes), file_name=FILE)


def test_a_library_that_is_no_word_is_named():
    with pytest.raises(EncoderFileError, match="pretty.*unknown library"):
        build_from_file({"a": torch.zeros(1)}, metadata(["timm"], TIMM), file_name=FILE)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": "x"},
        {"size": {"height": 0, "width": 8}},
        {"size": {}, "crop_size": {"width": 1}},
        {"image_std": [0, 0, 0]},
        {"image_mean": ["a", 0, 0]},
        {"image_mean": 3},
    ],
)
def test_preprocessor_settings_that_no_network_has_are_named(settings, tmp_path):
    weights, config = transformers_folder(tmp_path)
    with pytest.raises(EncoderFileError, match="pretty.*preprocessor"):
        build_from_file(weights, None, config={**config, "preprocessor": settings}, file_name=FILE)


def test_a_config_of_another_size_is_not_filled_with_random_weights(tmp_path):
    weights, config = transformers_folder(tmp_path)
    config["vision_config"]["intermediate_size"] = 64
    with pytest.raises(EncoderFileError, match=r"pretty.*does not fit transformers clip"):
        build_from_file(weights, None, config=config, file_name=FILE)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(1).expand(10**9),
        torch.zeros(4, 4).to_sparse(),
        torch.empty(4, device="meta"),
        torch.zeros(4, dtype=torch.complex64),
    ],
    ids=["expanded", "sparse", "meta", "complex"],
)
def test_tensors_that_are_not_what_they_seem_are_named(odd):
    weights, described = open_clip_case()
    with pytest.raises(EncoderFileError, match="pretty.*visual.odd is not stored as a plain tensor"):
        build_from_file({**weights, "visual.odd": odd}, described, file_name=FILE)


def test_every_model_config_of_open_clip_is_within_the_bounds():
    """Of those whose networks are described, none is refused by a field."""
    import open_clip

    from lora_conductor.guidance.encoders.base import EncoderFile
    from lora_conductor.guidance.encoders.open_clip import vision_arguments

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = vision_arguments(config, EncoderFile({}, FILE))["vision_cfg"]
        assert {**vision, "timm_model_pretrained": None} == {**config["vision_cfg"], "timm_model_pretrained": None}


def test_every_kind_of_transformers_is_described_by_what_it_writes():
    import transformers

    from lora_conductor.guidance.encoders.base import EncoderFile
    from lora_conductor.guidance.encoders.transformers import _KINDS, described

    for kind in sorted(_KINDS & set(transformers.CONFIG_MAPPING)):
        default = transformers.CONFIG_MAPPING[kind]()
        written = json.loads(default.to_json_string(use_diff=False))
        again = transformers.CONFIG_MAPPING[kind](
            **described(written, "config", default, EncoderFile({}, f"{kind}.safetensors"))
        )
        assert again.to_dict() == default.to_dict(), kind
