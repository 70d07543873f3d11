"""What the loader has beside files and strengths, through the running ComfyUI: switches, balance, words, and its answer
to pages that ask about a file."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from comfy_server import ComfyServer, WorkflowError

from ..host.workflows import STYLE, SUBJECT, latent, loader, node, record, router, run, sampled, stock, world

NAMED = "named.safetensors"


@pytest.fixture
def named(server: ComfyServer) -> Iterator[Path]:
    """The subject's file under another name, with a header, a note and a picture beside it."""
    path = server.base_dir / "models" / "loras" / NAMED
    metadata = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "modelspec.trigger_phrase": "zzfox"}
    save_file(load_file(path.with_name(SUBJECT)), path, metadata)
    note, picture = path.with_suffix(".civitai.info"), path.with_suffix(".preview.png")
    note.write_text(json.dumps({"trainedWords": ["zz fox", "zz \x1b[2J tail", "zz tail"], "baseModel": "SDXL 1.0"}))
    Image.new("RGB", (30, 40), "orange").save(picture)
    yield path
    for made in (path, note, picture):
        made.unlink()


def test_off_is_none_bit_for_bit_and_keeps_nothing_of_the_file(server: ComfyServer) -> None:
    graph = world(
        off=loader(subject_strength=1.3, style_strength=0.8, subject_on=False),
        none=loader(subject="None", style_strength=0.8),
        core=stock("model", STYLE, 0.8),
        both_off=loader(subject_on=False, style_on=False),
        report=node("PreviewAny", source=["off", 2]),
        stack=node("PreviewAny", source=["off", 3]),
        **{
            key: value
            for name in ("off", "none", "core", "both_off")
            for key, value in sampled(f"{name}.picture", name).items()
        },
        **sampled("plain", "model"),
    )
    outputs = run(server, graph)
    pictures = {name: latent(server, outputs, f"{name}.picture") for name in ("off", "none", "core", "both_off")}
    assert torch.equal(pictures["off"], pictures["core"]) and torch.equal(pictures["off"], pictures["none"])
    assert torch.equal(pictures["both_off"], latent(server, outputs, "plain"))
    assert not torch.equal(pictures["off"], pictures["both_off"])
    assert f"subject: {SUBJECT}  (switched off: not loaded)" in outputs["report"]["text"][0]
    assert SUBJECT not in outputs["stack"]["text"][0]


def test_a_prompt_of_the_first_release_is_the_defaults(server: ComfyServer) -> None:
    new = {"subject_on": True, "style_on": True, "balance": 0.0}
    assert not new.keys() & loader()["inputs"].keys()
    graph = world(old=loader(), new=loader(**new), **sampled("a", "old", seed=5), **sampled("b", "new", seed=5))
    outputs = run(server, graph)
    assert torch.equal(latent(server, outputs, "a"), latent(server, outputs, "b"))


def test_balance_is_the_router_s_for_the_loader_alone(server: ComfyServer) -> None:
    graph = world(
        own=loader(balance=1.0),
        plain=loader(),
        theirs=router("recommended", "plain"),
        behind=router("recommended", "own"),
        before=router("recommended", "model"),
        after=loader("before", balance=1.0),
        first=loader(style="None", balance=1.0),
        second=loader("first", subject="None"),
        said=node("PreviewAny", source=["own", 2]),
        not_here=node("PreviewAny", source=["after", 2]),
    )
    graph["theirs"]["inputs"]["balance"] = 1.0
    names = ("own", "plain", "theirs", "behind", "after", "second")
    for name in names:
        graph |= sampled(f"{name}.picture", name)
    outputs = run(server, graph)
    own, plain, theirs, behind, after, second = (latent(server, outputs, f"{name}.picture") for name in names)
    assert torch.equal(own, theirs) and not torch.equal(own, plain)
    assert torch.equal(behind, plain) and torch.equal(after, plain), "a router's own setting counts"
    assert torch.equal(second, own), "of a chain the last that is not 0"
    assert "balance 1, unless a KLLayerRouter follows" in outputs["said"]["text"][0]
    assert "balance does nothing here: KLLayerRouter stands before" in outputs["not_here"]["text"][0]


def test_balance_favours_the_role_that_it_says(server: ComfyServer) -> None:
    shares = {}
    for balance in (-2.0, 0.0, 2.0):
        found = record(run(server, world(dual=loader(balance=balance), **sampled("a", "dual", report=True))), "a")
        subject, style = (torch.tensor(table) for table in found["weights"])
        shares[balance] = float((subject / (subject + style)).mean())
    assert shares[-2.0] < shares[0.0] - 0.1 and shares[2.0] > shares[0.0] + 0.1


@pytest.mark.parametrize("name, value", [("subject_on", 2.5), ("style_on", [1]), ("balance", "much")])
def test_linked_values_of_other_kinds_are_refused_by_name(server: ComfyServer, name: str, value: object) -> None:
    graph = world(given=node("PrimitiveString", value=str(value)), dual=loader(**{name: ["given", 0]}))
    with pytest.raises(WorkflowError, match=name):
        run(server, graph | sampled("a", "dual"))


def test_words_and_base_are_in_the_report_and_the_words_an_output(server: ComfyServer, named: Path) -> None:
    graph = world(
        dual=loader(subject=NAMED),
        off=loader(subject=NAMED, subject_on=False),
        chained=loader("dual", subject=NAMED, style=NAMED, style_strength=0.5),
        **{
            f"{name}.{number}": node("PreviewAny", source=[name, number])
            for name in ("dual", "off", "chained")
            for number in (2, 4)
        },
    )
    outputs = run(server, graph)
    report, words = (outputs[f"dual.{number}"]["text"][0] for number in (2, 4))
    assert words == "zz fox, zz tail" and outputs["off.4"]["text"] == [""]
    assert outputs["chained.4"]["text"][0] == words, "once, though two files say it"
    head, *lines = report.splitlines()
    assert head == "36 layers routed, 0 keys left out; subject's file says it is for SDXL"
    assert "  base model: SDXL (*.civitai.info: SDXL 1.0), but the model is FLUX.1" in lines
    assert "  trigger words: zz fox; zz tail (*.civitai.info)" in lines
    assert "  base model: the file does not say" in lines and "  trigger words: the file names none" in lines
    assert any(line.startswith("  108 keys, rank 8, norm ") for line in lines)
    for part in ("they meet in", "loudness:", "cosine of what they add:", "directions in common:", "so: "):
        assert sum(part in line for line in lines) >= 1, part
    assert [line for line in lines if "sha256" in line] == lines[-2:], "below all that is for people"


def ask(server: ComfyServer, name: str) -> dict:
    return server.get(f"/lora_conductor/about?name={quote(name, safe='')}")


def test_pages_are_told_of_a_file(server: ComfyServer, named: Path) -> None:
    said = ask(server, NAMED)
    assert (said["words"], said["for_prompt"]) == (["zz fox", "zz tail"], "zz fox, zz tail")
    assert (said["base"], said["means"], said["keys"], said["rank"]) == ("SDXL 1.0", "SDXL", 108, 8)
    assert said["size"] == named.stat().st_size
    assert said["picture"] == {"folder": 0, "name": NAMED}
    with urllib.request.urlopen(f"{server.url}/experiment/models/preview/loras/0/{NAMED}", timeout=60) as answer:
        picture = answer.read()
    assert picture[:4] == b"RIFF" and picture[8:12] == b"WEBP"
    bare = ask(server, STYLE)
    assert (bare["words"], bare["base"], bare["picture"]) == ([], "", None)


@pytest.mark.parametrize(
    "name",
    [
        "None",
        "",
        "../checkpoints/x.safetensors",
        "../../../../../../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "C:\\x",
        "gone.safetensors",
        "a\0b",
        "x" * 5000,
        ".",
    ],
)
def test_what_is_no_file_of_the_folder_is_not_found(server: ComfyServer, name: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, name)
    assert caught.value.code == 404
