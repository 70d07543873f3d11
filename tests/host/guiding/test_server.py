"""MetricGuidedSampler in the running ComfyUI, through its API: the real executor with its inference mode."""

import threading

import pytest
import torch

from comfy_server import WorkflowError

from .. import workflows
from .guided import CLIP_FILE, DINO_FILE, TEXT_FILE


def workflow(guided=True, batch=1, clip=CLIP_FILE, dino=DINO_FILE, **changes):
    sampling = {"seed": 4, "steps": 8}
    guidance = {"guidance_strength": 0.1, "guidance_every": 1, "final_scores": True}
    if guided:
        sampler = workflows.guided("run", **(sampling | guidance | changes))
    else:
        sampler = workflows.sampled("run", "model", **(sampling | changes))
    graph = workflows.guidance_world(clip, dino, **sampler)
    graph["empty"]["inputs"]["batch_size"] = batch
    return graph


def test_noise_levels_that_are_no_numbers_fail_no_prompt(comfy):
    """ComfyUI's kl_optimal makes such of a single step; its sampler then draws nothing, and no report says a number."""
    picture, scores = run(comfy, steps=1, scheduler="kl_optimal")
    assert picture.isnan().all() and scores["guided"]


def run(server, guided=True, **kwargs):
    outputs = workflows.run(server, workflow(guided, **kwargs))
    return workflows.latent(server, outputs, "run"), workflows.scores(outputs, "run") if guided else None


def test_every_input_and_output_explains_itself(comfy):
    ksampler = comfy.get("/object_info/KSampler")["KSampler"]["input"]["required"]
    for name in ("MetricGuidedSampler", "MetricEncoderLoader"):
        info = comfy.get(f"/object_info/{name}")[name]
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert all(options[1]["tooltip"] for options in inputs.values())
        assert all(info["output_tooltips"])
        assert info["description"] and info["category"] == "LoRA Conductor"
    order = comfy.get("/object_info/MetricGuidedSampler")["MetricGuidedSampler"]["input_order"]["required"]
    assert order[: len(ksampler)] == list(ksampler)
    ours = comfy.get("/object_info/MetricGuidedSampler")["MetricGuidedSampler"]["input"]["required"]
    for key, (kind, *rest) in ksampler.items():
        options = rest[0] if rest else {}
        assert ours[key][1].get("default") == options.get("default")
        if isinstance(kind, list):
            assert ours[key][1]["options"] == kind
        else:
            assert ours[key][0] == kind


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_off_is_ksampler_bit_for_bit(comfy, sampler):
    expected, _ = run(comfy, guided=False, sampler_name=sampler)
    references = ("vae", "subject_image", "style_image", "clip_encoder", "dino_encoder")
    got, scores = run(comfy, leave_out=references, guidance_strength=0.0, sampler_name=sampler)
    assert torch.equal(got, expected)
    assert scores["guided"] is False
    got, _ = run(comfy, subject_strength=0.0, style_strength=0.0, sampler_name=sampler)
    assert torch.equal(got, expected)


def test_guidance_raises_similarity_under_inference_mode(comfy):
    plain, before = run(comfy, guidance_strength=1e-3, guidance_start=0.9, guidance_end=1.0)
    guided, after = run(comfy, guidance_strength=0.2)
    terms = {term["name"]: term["weight"] for term in after["terms"]}
    totals = [sum(w * scores["final"][name][0] for name, w in terms.items()) for scores in (before, after)]
    print(f"weighted similarity {totals[0]:.4f} -> {totals[1]:.4f}")
    assert totals[1] > totals[0] + 1e-3
    assert after["skipped"] == 0
    assert not torch.equal(plain, guided)


def test_the_worlds_own_encoders_guide(comfy):
    names = comfy.get("/object_info/MetricEncoderLoader")["MetricEncoderLoader"]["input"]["required"]["encoder_name"]
    files = {"clip": "emoji_clip.safetensors", "dino": "emoji_dino.safetensors"}
    assert set(files.values()) <= set(names[1]["options"])
    _, scores = run(comfy, batch=2, **files)
    assert scores["skipped"] == 0
    assert all(len(values) == 2 for values in scores["final"].values())


def test_a_prompt_guides_under_inference_mode(comfy):
    off = {"subject_strength": 0.0, "style_strength": 0.0, "leave_out": ("subject_image", "style_image")}
    by_prompt = {"clip": TEXT_FILE, "prompt": "a fox, drawn in ink", "prompt_strength": 1.0, **off}
    _, before = run(comfy, **by_prompt, guidance_strength=1e-3, guidance_start=0.9, guidance_end=1.0)
    _, after = run(comfy, **by_prompt, guidance_strength=0.2)
    found = [scores["final"]["S_CLIP_text"][0] for scores in (before, after)]
    print(f"similarity to the prompt {found[0]:.4f} -> {found[1]:.4f}")
    assert found[1] > found[0] + 1e-3
    score = workflows.node("FusionScore", images=["subject", 0], encoder=["clip", 0], prompt="a fox, drawn in ink")
    outputs = workflows.run(comfy, workflows.guidance_world(TEXT_FILE, DINO_FILE, score=score))
    assert "prompt (encoder)" in outputs["score"]["text"][0]


@pytest.mark.parametrize(
    ("leave_out", "changes", "message"),
    [
        (("subject_image",), {}, "subject_image: subject_strength is 1, but there is no reference picture"),
        (("style_image",), {}, "style_image: style_strength is 1, but there is no reference picture"),
        (("vae",), {}, "vae: metric guidance looks at decoded pictures"),
        (("clip_encoder", "dino_encoder"), {}, "clip_encoder and dino_encoder: "),
        ((), {"prompt_strength": 1.0, "prompt": "a fox"}, "clip_encoder: this encoder reads no prompts"),
        ((), {"guidance_start": 0.8, "guidance_end": 0.3}, "guidance_start, guidance_end, guidance_every: "),
    ],
)
def test_missing_inputs_are_named_before_sampling(comfy, leave_out, changes, message):
    steps = []

    def watch(kind, data):
        if kind == "progress":
            steps.append(data)

    with pytest.raises(WorkflowError, match=message):
        comfy.queue(workflow(leave_out=leave_out, **changes), on_event=watch)
    assert not steps


def test_an_interrupted_run_leaves_the_model_as_it_was(comfy):
    expected, _ = run(comfy, guided=False, seed=11)
    guided, _ = run(comfy, seed=11)

    def stop_at_first_step(kind, data):
        if kind == "progress" and data.get("value", 0) >= 5 and not stopper.is_alive():
            stopper.start()

    stopper = threading.Thread(target=comfy.interrupt)
    with pytest.raises(WorkflowError, match="interrupted"):
        comfy.queue(workflow(seed=12, steps=400), on_event=stop_at_first_step)
    stopper.join()
    # Above 0.9999 denoise counts as 1, but the executor, which caches results, takes it for another workflow.
    assert torch.equal(run(comfy, guided=False, seed=11, denoise=0.99995)[0], expected)
    assert torch.equal(run(comfy, seed=11, denoise=0.99995)[0], guided)


def test_the_log_has_no_complaint_of_ours(comfy):
    lines = [line for line in comfy.log.splitlines() if "lora_conductor" in line or "lora-conductor" in line]
    assert not [line for line in lines if "WARNING" in line or "Traceback" in line or "IMPORT FAILED" in line]
