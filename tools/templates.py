"""Draw the templates anew, into ``example_workflows/``: ``make templates``.

    templates.py [NAME ...]

Files of models are named as ComfyUI's own public templates name them, with the same addresses; those that ComfyUI has
no template for are listed in ``ELSEWHERE`` with where they come from.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bootstrap_host import HostError, find_host
from comfy_server import ComfyServer
from host_base import make_base
from repo_paths import REPO
from template_sheet import Out, Sheet, out, write

EXAMPLES = REPO / "example_workflows"
HUB = "https://huggingface.co"
COMFY = f"{HUB}/Comfy-Org"


def _file(directory: str, name: str, address: str) -> dict[str, str]:
    return {"name": name, "url": f"{address}/{name}", "directory": directory}


SDXL = _file(
    "checkpoints", "sd_xl_base_1.0.safetensors", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main"
)
ILLUSTRIOUS = _file(
    "checkpoints",
    "Illustrious-XL-v0.1.safetensors",
    f"{HUB}/OnomaAIResearch/Illustrious-xl-early-release-v0/resolve/main",
)
CANNY = _file(
    "controlnet",
    "control-lora-canny-rank256.safetensors",
    f"{HUB}/stabilityai/control-lora/resolve/main/control-LoRAs-rank256",
)
FLUX = _file("diffusion_models", "flux1-dev.safetensors", f"{COMFY}/flux1-dev/resolve/main")
CLIP_L = _file("text_encoders", "clip_l.safetensors", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main")
T5 = _file("text_encoders", "t5xxl_fp16.safetensors", f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main")
FLUX_VAE = _file("vae", "ae.safetensors", f"{COMFY}/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae")
Z_FILES = f"{COMFY}/z_image_turbo/resolve/main/split_files"
Z_IMAGE = _file("diffusion_models", "z_image_turbo_bf16.safetensors", f"{Z_FILES}/diffusion_models")
Z_QWEN = _file("text_encoders", "qwen_3_4b.safetensors", f"{Z_FILES}/text_encoders")
Z_VAE = _file("vae", "ae.safetensors", f"{Z_FILES}/vae")
KLEIN_FILES = f"{COMFY}/flux2-klein/resolve/main/split_files"
KLEIN = _file("diffusion_models", "flux-2-klein-4b.safetensors", f"{KLEIN_FILES}/diffusion_models")
KLEIN_QWEN = _file("text_encoders", "qwen_3_4b.safetensors", f"{KLEIN_FILES}/text_encoders")
KLEIN_VAE = _file("vae", "flux2-vae.safetensors", f"{COMFY}/flux2-dev/resolve/main/split_files/vae")
CLIP_VISION = _file(
    "clip_vision",
    "clip_vision_h.safetensors",
    f"{COMFY}/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/clip_vision",
)
DINO = _file("clip_vision", "dino_v3_vit_h.safetensors", f"{HUB}/VAST-AI/TripoSplat/resolve/main/clip_vision")
ELSEWHERE = (ILLUSTRIOUS, CANNY)  # OnomaAI's and Stability's own repositories

PROMPT = "SUBJECT_TRIGGER sitting in a garden, STYLE_TRIGGER"
NOT = "blurry, deformed, text, watermark"
SINK, PLAIN, LOOK = "#8a8", "#b06634", "#88A"
FILES = (
    "ComfyUI lists the models that are missing and offers them for download. Pick your two LoRAs on "
    "**Dual LoRA Dynamic Loader**: who or what is in the picture, and how it looks."
)
WORDS = "Replace SUBJECT_TRIGGER and STYLE_TRIGGER in the prompt by the trigger words of your LoRAs."
LOOKING = (
    "*Report* on the loader should say *layers routed, 0 keys left out*. **Compare Images** lays the fused "
    "picture over the plain stack of the same seed: move the pointer over it. (Where it says *Nodes 2.0 only*, look at "
    "the two pictures.)"
)
ENOUGH = " When you have seen enough, right-click the group *The plain stack*, *Bypass Group Nodes*: half the time."
CFG = (
    " Burnt or garish: *emphasis* 1.5 on the router, then 1. The face is lost: *subject_strength* 1.25. The style is "
    "weak: "
    "*style_strength* 1.25. More under *First picture* in the loader's help."
)
NO_CFG = (
    " *emphasis* does nothing at CFG 1. Burnt or garish: both strengths down together, 0.8, then 0.6. The face is "
    "lost: "
    "*subject_strength* 1.25. The style is weak: *style_strength* 1.25. More under *First picture* in the loader's "
    "help."
)


class Model(NamedTuple):
    """What a family's loaders give, and the groups beside them."""

    model: Out
    clip: Out
    vae: Out
    size: Out
    seed: Out


class Prompts(NamedTuple):
    positive: Out
    negative: Out


class Sampling(NamedTuple):
    steps: int
    cfg: float
    sampler: str
    scheduler: str


SDXL_SAMPLING = Sampling(30, 6.0, "dpmpp_2m", "karras")
FLUX_SAMPLING = Sampling(20, 1.0, "euler", "simple")


def _steps(files: str, words: str, run: str, second: str = "Both trigger words") -> str:
    titles = ("Your model and your two LoRAs", second, "Run, and look beside the plain stack")
    steps = zip(titles, (files, words, run), strict=True)
    return "\n\n".join(f"## {number}. {title}\n{text}" for number, (title, text) in enumerate(steps, 1))


def _checkpoint(sheet: Sheet, file: dict[str, str], size: tuple[int, int], *, skip: int = 0) -> Model:
    group = sheet.group("1 · Model, size, seed", 0)
    loader = sheet.add(group, "CheckpointLoaderSimple", models=(file,), ckpt_name=file["name"])
    clip = out(loader, "CLIP")
    if skip:
        clip = out(sheet.add(group, "CLIPSetLastLayer", "CLIP skip", clip=clip, stop_at_clip_layer=skip))
    latent = sheet.add(group, "EmptyLatentImage", width=size[0], height=size[1])
    seed = sheet.add(group, "PrimitiveInt", "Seed of both pictures", value=1)
    return Model(out(loader, "MODEL"), clip, out(loader, "VAE"), out(latent), out(seed))


def _flux(sheet: Sheet) -> Model:
    group = sheet.group("1 · Model, size, seed", 0)
    unet = sheet.add(group, "UNETLoader", models=(FLUX,), unet_name=FLUX["name"])
    clip = sheet.add(
        group, "DualCLIPLoader", models=(CLIP_L, T5), clip_name1=CLIP_L["name"], clip_name2=T5["name"], type="flux"
    )
    vae = sheet.add(group, "VAELoader", models=(FLUX_VAE,), vae_name=FLUX_VAE["name"])
    latent = sheet.add(group, "EmptySD3LatentImage", width=1024, height=1024)
    seed = sheet.add(group, "PrimitiveInt", "Seed of both pictures", value=1)
    return Model(out(unet), out(clip), out(vae), out(latent), out(seed))


def _pair(sheet: Sheet, base: Model, *, with_clip: bool = True, column: int = 1) -> tuple[Out, Out]:
    """The loader: its model, and the text encoder to go on with."""
    group = sheet.group("2 · Your two LoRAs", column, color="#a1309b")
    sockets = {"clip": base.clip} if with_clip else {}
    node = sheet.add(group, "DualLoRADynamicLoader", model=base.model, **sockets)
    return out(node, "MODEL"), out(node, "CLIP") if with_clip else base.clip


def _prompts(sheet: Sheet, clip: Out, text: str = PROMPT, against: str = NOT, *, column: int = 2) -> Prompts:
    group = sheet.group("3 · Words", column, color=SINK)
    positive = sheet.add(group, "CLIPTextEncode", "What to draw", clip=clip, text=text)
    negative = sheet.add(group, "CLIPTextEncode", "What not to draw", clip=clip, text=against, tall=110)
    return Prompts(out(positive), out(negative))


def _prompt_alone(sheet: Sheet, clip: Out, *, guidance: float = 0.0, column: int = 2) -> Prompts:
    """Of models that run without CFG: the negative prompt is none."""
    group = sheet.group("3 · Words", column, color=SINK)
    positive = out(sheet.add(group, "CLIPTextEncode", "What to draw", clip=clip, text=PROMPT))
    negative = out(sheet.add(group, "ConditioningZeroOut", conditioning=positive))
    if guidance:
        positive = out(sheet.add(group, "FluxGuidance", conditioning=positive, guidance=guidance))
    return Prompts(positive, negative)


def _router(sheet: Sheet, model: Out, *, column: int = 2, **settings: Any) -> Out:
    group = sheet.group("How the two share the picture", column, 1, color="#a1309b")
    return out(sheet.add(group, "KLLayerRouter", model=model, **settings))


def _sampler(sheet: Sheet, group: Any, model: Out, base: Model, prompts: Prompts, how: Sampling, **more: Any) -> Out:
    given = {"latent_image": base.size, "seed": base.seed, "kind": "KSampler"} | more
    return out(
        sheet.add(
            group,
            given.pop("kind"),
            model=model,
            positive=prompts.positive,
            negative=prompts.negative,
            steps=how.steps,
            cfg=how.cfg,
            sampler_name=how.sampler,
            scheduler=how.scheduler,
            **given,
        )
    )


def _plain(sheet: Sheet, pair: Out, base: Model, prompts: Prompts, how: Sampling, *, column: int = 3) -> Out:
    """The plain stack of the same two LoRAs from the same seed: its picture."""
    group = sheet.group("The plain stack, same seed", column, 1, color=PLAIN)
    router = sheet.add(group, "KLLayerRouter", "Plain stacking", model=pair, policy="sum", below=110)
    latent = _sampler(sheet, group, out(router), base, prompts, how)
    picture = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    sheet.add(group, "PreviewImage", "The plain stack", images=picture)
    return picture


def _looks(sheet: Sheet, plain: Out, fused: Out, prefix: str, *, column: int = 4, group: Any = None) -> None:
    group = group or sheet.group("The picture, and beside the plain stack", column, color=LOOK, width=460)
    sheet.add(
        group, "SaveImage", "This subject, in that style", images=fused, filename_prefix=f"lora_conductor/{prefix}"
    )
    sheet.add(group, "ImageCompare", "The plain stack | fused", image_a=plain, image_b=fused)


def _report(sheet: Sheet, model: Out, latent: Out, *, column: int = 5) -> Out:
    """The routing report; the latent goes on through it."""
    group = sheet.group("Who drew what", column, color=LOOK, width=400)
    report = sheet.add(group, "RoutingReport", model=model, latent=latent)
    sheet.add(group, "PreviewAny", "In words", source=out(report, 2), tall=420)
    return out(report)


def _whole(sheet: Sheet, base: Model, pair: Out, prompts: Prompts, how: Sampling, prefix: str) -> None:
    """Router, both samplers, picture, comparison and report of the plain templates."""
    routed = _router(sheet, pair)
    group = sheet.group("Fused", 3, color=SINK)
    latent = _sampler(sheet, group, routed, base, prompts, how)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = _plain(sheet, pair, base, prompts, how)
    _looks(sheet, plain, fused, prefix)
    _report(sheet, routed, latent)


def sdxl(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = _pair(sheet, base)
    _whole(sheet, base, pair, _prompts(sheet, clip), SDXL_SAMPLING, "sdxl")
    sheet.note(
        "This subject, in that style: SDXL",
        _steps(FILES + " Any SDXL checkpoint will do.", WORDS, LOOKING + ENOUGH + CFG),
        width=1180,
    )


def illustrious(sheet: Sheet) -> None:
    base = _checkpoint(sheet, ILLUSTRIOUS, (832, 1216), skip=-2)
    pair, clip = _pair(sheet, base)
    prompts = _prompts(
        sheet,
        clip,
        "masterpiece, best quality, SUBJECT_TRIGGER, 1girl, sitting, garden, STYLE_TRIGGER",
        "worst quality, low quality, bad anatomy, signature, watermark",
    )
    _whole(sheet, base, pair, prompts, Sampling(28, 5.5, "euler_ancestral", "normal"), "illustrious")
    sheet.note(
        "This character, in that style: Illustrious, NoobAI, Pony",
        _steps(
            FILES
            + " These LoRAs often trained the text encoder too: CLIP goes through the loader, behind CLIP skip 2.",
            WORDS + " Tags are parted by commas, quality tags stand first: *masterpiece, best quality* for Illustrious "
            "and NoobAI, *score_9, score_8_up, score_7_up* for Pony.",
            LOOKING + ENOUGH + CFG,
        ),
        width=1180,
    )


def flux(sheet: Sheet) -> None:
    base = _flux(sheet)
    pair, clip = _pair(sheet, base)
    _whole(sheet, base, pair, _prompt_alone(sheet, clip, guidance=3.5), FLUX_SAMPLING, "flux")
    sheet.note(
        "This subject, in that style: FLUX.1-dev, at CFG 1",
        _steps(FILES, WORDS + " FLUX reads sentences.", LOOKING + ENOUGH + NO_CFG),
        width=1180,
    )


def z_image(sheet: Sheet) -> None:
    group = sheet.group("1 · Model, size, seed", 0)
    unet = sheet.add(group, "UNETLoader", models=(Z_IMAGE,), unet_name=Z_IMAGE["name"])
    shifted = sheet.add(group, "ModelSamplingAuraFlow", model=out(unet), shift=3.0)
    clip = sheet.add(group, "CLIPLoader", models=(Z_QWEN,), clip_name=Z_QWEN["name"], type="lumina2")
    vae = sheet.add(group, "VAELoader", models=(Z_VAE,), vae_name=Z_VAE["name"])
    latent = sheet.add(group, "EmptySD3LatentImage", width=1024, height=1024)
    seed = sheet.add(group, "PrimitiveInt", "Seed of both pictures", value=1)
    base = Model(out(shifted), out(clip), out(vae), out(latent), out(seed))
    pair, words = _pair(sheet, base, with_clip=False)
    _whole(sheet, base, pair, _prompt_alone(sheet, words), Sampling(8, 1.0, "res_multistep", "simple"), "z_image")
    sheet.note(
        "This subject, in that style: Z-Image-Turbo, at CFG 1",
        _steps(
            FILES + " Where one LoRA alone already looks best at 0.6 or 0.7, set that strength.",
            WORDS + " Z-Image reads sentences.",
            LOOKING + ENOUGH + NO_CFG,
        ),
        width=1180,
    )


def klein(sheet: Sheet) -> None:
    group = sheet.group("1 · Model, size, seed", 0)
    unet = sheet.add(group, "UNETLoader", models=(KLEIN,), unet_name=KLEIN["name"])
    clip = sheet.add(group, "CLIPLoader", models=(KLEIN_QWEN,), clip_name=KLEIN_QWEN["name"], type="flux2")
    vae = sheet.add(group, "VAELoader", models=(KLEIN_VAE,), vae_name=KLEIN_VAE["name"])
    latent = sheet.add(group, "EmptyFlux2LatentImage", width=1024, height=1024)
    noise = sheet.add(group, "RandomNoise", "Seed of both pictures", noise_seed=1)
    sigmas = sheet.add(group, "Flux2Scheduler", steps=4, width=1024, height=1024)
    sampler = sheet.add(group, "KSamplerSelect", sampler_name="euler")
    base = Model(out(unet), out(clip), out(vae), out(latent), out(noise))
    pair, words = _pair(sheet, base, with_clip=False)
    prompts = _prompt_alone(sheet, words)
    routed = _router(sheet, pair)

    def sampled(group: Any, model: Out) -> tuple[Out, Out]:
        guider = sheet.add(
            group, "CFGGuider", model=model, positive=prompts.positive, negative=prompts.negative, cfg=1.0
        )
        node = sheet.add(
            group,
            "SamplerCustomAdvanced",
            noise=base.seed,
            guider=out(guider),
            sampler=out(sampler),
            sigmas=out(sigmas),
            latent_image=base.size,
        )
        return out(node), out(sheet.add(group, "VAEDecode", samples=out(node), vae=base.vae))

    latents, fused = sampled(sheet.group("Fused", 3, color=SINK), routed)
    beside = sheet.group("The plain stack, same seed", 3, 1, color=PLAIN)
    stacked = sheet.add(beside, "KLLayerRouter", "Plain stacking", model=pair, policy="sum", below=110)
    _, plain = sampled(beside, out(stacked))
    sheet.add(beside, "PreviewImage", "The plain stack", images=plain)
    _looks(sheet, plain, fused, "flux2_klein")
    _report(sheet, routed, latents)
    sheet.note(
        "This subject, in that style: FLUX.2 klein 4B, at CFG 1",
        _steps(
            FILES + " LoRAs of the *base* model fit as well; with that, set 20 steps and CFG 5.",
            WORDS + " FLUX.2 reads sentences.",
            LOOKING + ENOUGH + NO_CFG + " Mush at 4 steps: 6, then 8.",
        ),
        width=1180,
    )


def _encoders(sheet: Sheet, group: Any) -> dict[str, Out]:
    clip = sheet.add(group, "CLIPVisionLoader", "CLIP encoder", models=(CLIP_VISION,), clip_name=CLIP_VISION["name"])
    dino = sheet.add(group, "CLIPVisionLoader", "DINO encoder", models=(DINO,), clip_name=DINO["name"])
    return {"clip_encoder": out(clip), "dino_encoder": out(dino)}


OLD_HOST = " (ComfyUI versions that cannot read DINOv3: remove that node; CLIP then looks at both.)"


def guidance(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (1024, 1024))
    group = sheet.group("Pictures, and who looks at them", 1, color="#3f789e")
    subject = sheet.add(group, "LoadImage", "Photo of the subject", image="example.png")
    style = sheet.add(group, "LoadImage", "Picture in the style", image="example.png")
    references = sheet.add(group, "GuidanceReferences", subject_image=out(subject), style_image=out(style))
    encoders = _encoders(sheet, group)
    pair, clip = _pair(sheet, base, column=2)
    prompts = _prompts(sheet, clip, column=3)
    routed = _router(sheet, pair, column=3)
    group = sheet.group("Fused and guided", 4, color=SINK)
    guided = {"kind": "MetricGuidedSampler", "vae": base.vae, "references": out(references), **encoders}
    latent = _sampler(sheet, group, routed, base, prompts, SDXL_SAMPLING, final_scores=True, **guided)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = _plain(sheet, pair, base, prompts, SDXL_SAMPLING, column=5)
    _looks(sheet, plain, fused, "sdxl_guided", column=6)
    report = sheet.group("The scores", 5, color=LOOK)
    sheet.add(report, "PreviewAny", "Guidance scores", source=Out(latent.node, 1))
    sheet.note(
        "Guidance by a photo of the subject and a picture in the style: SDXL",
        _steps(
            FILES + OLD_HOST,
            "Load a photo of your subject and a picture in the style that shows something "
            "else. To "
            "mask the subject: right-click the photo, *Open in MaskEditor*, paint over it, and connect its MASK to "
            "*subject_mask*. " + WORDS,
            LOOKING + " The curves on **Metric Guided Sampler** show whether the picture moves towards yours; with "
            "*guidance_strength* 0 it is *KSampler*. Coloured specks: *guidance_strength* down.",
            "Two pictures, both trigger words",
        ),
        width=1180,
    )


def references(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (1024, 1024))
    group = sheet.group("Who looks at the picture", 1, color="#3f789e")
    encoders = _encoders(sheet, group)
    pair, clip = _pair(sheet, base, column=2)
    alone = sheet.group("What each LoRA draws alone", 1, 1, color=SINK)
    subject = sheet.add(alone, "CLIPTextEncode", "Subject alone", clip=clip, text="SUBJECT_TRIGGER, plain background")
    style = sheet.add(alone, "CLIPTextEncode", "Style alone: something else", clip=clip, text="a house, STYLE_TRIGGER")
    prompts = _prompts(sheet, clip, column=3)
    routed = _router(sheet, pair, column=3)
    group = sheet.group("Fused and guided", 4, color=SINK)
    guided = {
        "kind": "MetricGuidedSampler",
        "vae": base.vae,
        "references_from": "each LoRA alone",
        "subject_positive": out(subject),
        "style_positive": out(style),
        "final_scores": True,
        **encoders,
    }
    latent = _sampler(sheet, group, routed, base, prompts, SDXL_SAMPLING, **guided)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = _plain(sheet, pair, base, prompts, SDXL_SAMPLING, column=5)
    _looks(sheet, plain, fused, "sdxl_own_references", column=6)
    report = sheet.group("The scores", 5, color=LOOK)
    sheet.add(report, "PreviewAny", "Guidance scores", source=Out(latent.node, 1))
    sheet.note(
        "No picture at hand: references drawn by the LoRAs themselves, SDXL",
        _steps(
            FILES + " This one needs both." + OLD_HOST,
            "Replace the trigger words in all three prompts. *Style alone* shows another thing than your "
            "subject, so that nothing but the style is shared.",
            LOOKING
            + " **Metric Guided Sampler** first draws one picture with each LoRA alone and is then guided by these; "
            "it draws them once for the same settings.",
        ),
        width=1180,
    )


def compare(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = _pair(sheet, base)
    prompts = _prompts(sheet, clip)
    group = sheet.group("How the two share the picture: a grid", 2, 1, color="#a1309b")
    grid = sheet.add(
        group,
        "ComparePolicies",
        model=pair,
        vae=base.vae,
        positive=prompts.positive,
        negative=prompts.negative,
        latent_image=base.size,
        policies="sum, paper, np_lora, recommended",
        seed=base.seed,
        seeds=2,
        steps=SDXL_SAMPLING.steps,
        cfg=SDXL_SAMPLING.cfg,
        sampler_name=SDXL_SAMPLING.sampler,
        scheduler=SDXL_SAMPLING.scheduler,
    )
    group = sheet.group("Policies down, seeds across: `sum` is the plain stack", 3, color=LOOK, width=900)
    sheet.add(group, "SaveImage", images=out(grid), filename_prefix="lora_conductor/policies", tall=1200)
    group = sheet.group("What it says", 4, color=LOOK, width=420)
    sheet.add(group, "PreviewAny", "Scores", source=out(grid, "scores"), tall=420)
    sheet.note(
        "Which policy suits these LoRAs? SDXL",
        _steps(
            FILES + " Set the seed in the group on the left.",
            WORDS,
            "Every row is a policy, every column a seed; `sum`, the first row, is the plain stack. With a "
            "photo in *subject_image*, a picture in *style_image* and encoders, the cells are scored and the best "
            "one is "
            "framed; without, look for yourself. Stopped half way, it goes on where it was.",
        ),
        width=1180,
    )


def measure(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = _pair(sheet, base)
    prompts = _prompts(sheet, clip)
    routed = _router(sheet, pair)
    group = sheet.group("Who looks at the pictures", 1, 1, color="#3f789e")
    encoders = _encoders(sheet, group)
    group = sheet.group("Measured, then voted on", 3, color="#a1309b", width=420)
    node = sheet.add(
        group,
        "MeasureMyPair",
        model=routed,
        vae=base.vae,
        positive=prompts.positive,
        negative=prompts.negative,
        latent_image=base.size,
        seed=base.seed,
        seeds=4,
        steps=SDXL_SAMPLING.steps,
        cfg=SDXL_SAMPLING.cfg,
        sampler_name=SDXL_SAMPLING.sampler,
        scheduler=SDXL_SAMPLING.scheduler,
        subject_encoder=encoders["dino_encoder"],
        style_encoder=encoders["clip_encoder"],
    )
    group = sheet.group("No LoRA, subject alone, style alone, the plain stack, ours", 4, color=LOOK, width=1000)
    sheet.add(group, "SaveImage", images=out(node), filename_prefix="lora_conductor/my_pair", tall=1100)
    group = sheet.group("What it says", 5, color=LOOK, width=460)
    sheet.add(group, "PreviewAny", "In words", source=out(node, "report"), tall=700)
    sheet.note(
        "How well do my two LoRAs share a picture? Measured, and judged blind: SDXL",
        _steps(
            FILES + " Both are needed." + OLD_HOST,
            WORDS + " Set the first seed in the group on the left; four seeds take twenty pictures.",
            "**Queue.** Without encoders there are still sheet, burn and vote. The report begins with a verdict and "
            "what to turn next. Then vote on **Measure My Pair**: left, right or neither, without knowing which is "
            "which. Turn one thing, queue again: each setting has its own tally, kept with the workflow.",
        ),
        width=1180,
    )


def plan(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = _pair(sheet, base)
    prompts = _prompts(sheet, clip)
    routed = _router(sheet, pair)
    group = sheet.group("Fused: measured", 3, color=SINK)
    latent = _sampler(sheet, group, routed, base, prompts, SDXL_SAMPLING)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = _plain(sheet, pair, base, prompts, SDXL_SAMPLING)
    group = sheet.group("The same decisions again", 4, color="#a1309b", width=400)
    saved = sheet.add(group, "SaveRoutingPlan", model=routed, latent=latent, filename_prefix="routing_plans/plan")
    again = sheet.add(group, "KLLayerRouter", "Replays the plan", model=pair, plan=out(saved, "plan"), below=110)
    latent = _sampler(sheet, group, out(again), base, prompts, SDXL_SAMPLING)
    replayed = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    sheet.add(group, "SaveImage", "Replayed", images=replayed, filename_prefix="lora_conductor/replayed", tall=400)
    _looks(sheet, plain, fused, "measured", column=5)
    sheet.note(
        "Keep what was decided, and repeat it: SDXL",
        _steps(
            FILES,
            WORDS,
            "**Save Routing Plan** keeps who got what in every layer and step; the router that gets the "
            "plan "
            "makes the same picture bit for bit without measuring anything. Give its sampler another seed or prompt to "
            "carry the division of labour over to another picture. **Load Routing Plan** reads the file again "
            "another day. "
            "**Compare Images** shows the plain stack beside the fused picture.",
        ),
        width=1180,
    )


def bake(sheet: Sheet) -> None:
    base = _flux(sheet)
    pair, clip = _pair(sheet, base)
    prompts = _prompt_alone(sheet, clip, guidance=3.5)
    routed = _router(sheet, pair, freeze_after=5, emphasis=1.0)
    group = sheet.group("Fused: measured for 5 steps, then frozen", 3, color=SINK)
    latent = _sampler(sheet, group, routed, base, prompts, FLUX_SAMPLING)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = _plain(sheet, pair, base, prompts, FLUX_SAMPLING)
    _looks(sheet, plain, fused, "flux_frozen")
    group = sheet.group("One file of the two", 5, color="#a1309b", width=400)
    baked = sheet.add(group, "BakeFusedLoRA", model=routed, latent=latent, filename_prefix="loras/fused", below=300)
    sheet.add(group, "PreviewAny", "What was written", source=out(baked, "report"))
    sheet.note(
        "From two LoRAs to one file: freeze and bake, FLUX.1-dev",
        _steps(
            FILES,
            WORDS,
            "The router measures for five steps (*freeze_after*) and settles the rest as ordinary "
            "weights, at "
            "no cost; *emphasis* is 1, since a file cannot tell two prompts apart. **Bake Fused LoRA** writes what "
            "came "
            "of it as one LoRA file that every program loads at strength 1. **Compare Images** shows the plain stack "
            "beside "
            "the fused picture.",
        ),
        width=1180,
    )


def hires(sheet: Sheet) -> None:
    base = _checkpoint(sheet, SDXL, (832, 1216))
    pair, clip = _pair(sheet, base)
    prompts = _prompts(sheet, clip)
    routed = _router(sheet, pair)
    group = sheet.group("Fused: first pass", 3, color=SINK)
    latent = _sampler(sheet, group, routed, base, prompts, SDXL_SAMPLING)
    first = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = _plain(sheet, pair, base, prompts, SDXL_SAMPLING)
    group = sheet.group("Second pass, held by a ControlNet", 4, color=SINK)
    net = sheet.add(group, "ControlNetLoader", models=(CANNY,), control_net_name=CANNY["name"])
    edges = sheet.add(group, "Canny", image=first, low_threshold=0.4, high_threshold=0.8)
    held = sheet.add(
        group,
        "ControlNetApplyAdvanced",
        positive=prompts.positive,
        negative=prompts.negative,
        control_net=out(net),
        image=out(edges),
        vae=base.vae,
        strength=0.6,
        end_percent=0.7,
    )
    larger = sheet.add(group, "LatentUpscaleBy", samples=latent, upscale_method="bislerp", scale_by=1.5)
    second = _sampler(
        sheet,
        group,
        routed,
        base,
        Prompts(out(held, 0), out(held, 1)),
        SDXL_SAMPLING._replace(steps=20),
        latent_image=out(larger),
        denoise=0.5,
    )
    last = out(sheet.add(group, "VAEDecode", samples=second, vae=base.vae))
    group = sheet.group("The picture, and beside the plain stack", 5, color=LOOK, width=460)
    name = "lora_conductor/sdxl_hires"
    sheet.add(group, "SaveImage", "This subject, in that style", images=last, filename_prefix=name)
    sheet.add(group, "ImageCompare", "First pass: the plain stack | fused", image_a=plain, image_b=first)
    _report(sheet, routed, second, column=6)
    sheet.note(
        "Hires second pass, held by a ControlNet: SDXL",
        _steps(
            FILES,
            WORDS,
            LOOKING
            + ENOUGH
            + " The second pass draws the picture again at one and a half times the size, with the edges of "
            "the first held by a ControlNet. Both passes use the same fused model, and each has its own routing: the "
            "map "
            "shows the newest, **Routing Report** that of the latent it is given.",
        ),
        width=1180,
    )


TEMPLATES: dict[str, Callable[[Sheet], None]] = {
    "01_sdxl_subject_x_style": sdxl,
    "02_illustrious_pony_character_x_style": illustrious,
    "03_flux_subject_x_style": flux,
    "04_z_image_turbo_subject_x_style": z_image,
    "05_flux2_klein_subject_x_style": klein,
    "06_sdxl_compare_policies": compare,
    "07_sdxl_guidance_by_photos": guidance,
    "08_sdxl_references_by_the_loras": references,
    "09_sdxl_hires_second_pass_controlnet": hires,
    "10_sdxl_save_and_replay_a_plan": plan,
    "11_flux_freeze_and_bake": bake,
    "12_sdxl_measure_my_pair": measure,
}


def drawn(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A template by its name, from the definitions of the nodes."""
    sheet = Sheet(definitions)
    TEMPLATES[name](sheet)
    return sheet.written()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these")
    names = parser.parse_args().names or list(TEMPLATES)
    if unknown := set(names) - set(TEMPLATES):
        sys.exit(f"error: no template {', '.join(sorted(unknown))}; there are: {', '.join(TEMPLATES)}")
    try:
        host = find_host()
    except HostError as error:
        sys.exit(f"error: {error}")
    with tempfile.TemporaryDirectory(prefix="templates-") as folder, ComfyServer(host, _bare(folder)) as server:
        definitions = server.object_info()
    for name in names:
        write(EXAMPLES / f"{name}.json", drawn(name, definitions))
        print(f"wrote example_workflows/{name}.json")


def _bare(folder: str) -> Path:
    """A base without any model: what is chosen by default must be nobody's file."""
    return make_base(Path(folder), world=False)


if __name__ == "__main__":
    main()
