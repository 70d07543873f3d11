"""What templates are put together from: loaders, the pair, words, routing, sampling, the plain stack, the look."""

from __future__ import annotations

from typing import Any, NamedTuple

from template_files import CLIP_L, FLUX, FLUX_VAE, T5
from template_sheet import Out, Sheet, out

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
    " Both are faint: *emphasis* 1.25 on the router, then 1.5. Burnt or garish: both strengths down together, 0.8, "
    "then 0.6. The face is lost: *subject_strength* 1.25. The style is weak: *style_strength* 1.25. More under *First "
    "picture* in the loader's help."
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


def steps_of(files: str, words: str, run: str, second: str = "Both trigger words") -> str:
    titles = ("Your model and your two LoRAs", second, "Run, and look beside the plain stack")
    steps = zip(titles, (files, words, run), strict=True)
    return "\n\n".join(f"## {number}. {title}\n{text}" for number, (title, text) in enumerate(steps, 1))


def load_checkpoint(sheet: Sheet, file: dict[str, str], size: tuple[int, int], *, skip: int = 0) -> Model:
    group = sheet.group("1 · Model, size, seed", 0)
    loader = sheet.add(group, "CheckpointLoaderSimple", models=(file,), ckpt_name=file["name"])
    clip = out(loader, "CLIP")
    if skip:
        clip = out(sheet.add(group, "CLIPSetLastLayer", "CLIP skip", clip=clip, stop_at_clip_layer=skip))
    latent = sheet.add(group, "EmptyLatentImage", width=size[0], height=size[1])
    seed = sheet.add(group, "PrimitiveInt", "Seed of both pictures", value=1)
    return Model(out(loader, "MODEL"), clip, out(loader, "VAE"), out(latent), out(seed))


def load_flux(sheet: Sheet) -> Model:
    group = sheet.group("1 · Model, size, seed", 0)
    unet = sheet.add(group, "UNETLoader", models=(FLUX,), unet_name=FLUX["name"])
    clip = sheet.add(
        group, "DualCLIPLoader", models=(CLIP_L, T5), clip_name1=CLIP_L["name"], clip_name2=T5["name"], type="flux"
    )
    vae = sheet.add(group, "VAELoader", models=(FLUX_VAE,), vae_name=FLUX_VAE["name"])
    latent = sheet.add(group, "EmptySD3LatentImage", width=1024, height=1024)
    seed = sheet.add(group, "PrimitiveInt", "Seed of both pictures", value=1)
    return Model(out(unet), out(clip), out(vae), out(latent), out(seed))


def load_pair(sheet: Sheet, base: Model, *, with_clip: bool = True, column: int = 1) -> tuple[Out, Out]:
    """The loader: its model, and the text encoder to go on with."""
    group = sheet.group("2 · Your two LoRAs", column, color="#a1309b")
    sockets = {"clip": base.clip} if with_clip else {}
    node = sheet.add(group, "DualLoRADynamicLoader", model=base.model, **sockets)
    return out(node, "MODEL"), out(node, "CLIP") if with_clip else base.clip


def write_prompts(sheet: Sheet, clip: Out, text: str = PROMPT, against: str = NOT, *, column: int = 2) -> Prompts:
    group = sheet.group("3 · Words", column, color=SINK)
    positive = sheet.add(group, "CLIPTextEncode", "What to draw", clip=clip, text=text)
    negative = sheet.add(group, "CLIPTextEncode", "What not to draw", clip=clip, text=against, tall=110)
    return Prompts(out(positive), out(negative))


def write_prompt(sheet: Sheet, clip: Out, *, guidance: float = 0.0, column: int = 2) -> Prompts:
    """Of models that run without CFG: the negative prompt is none."""
    group = sheet.group("3 · Words", column, color=SINK)
    positive = out(sheet.add(group, "CLIPTextEncode", "What to draw", clip=clip, text=PROMPT))
    negative = out(sheet.add(group, "ConditioningZeroOut", conditioning=positive))
    if guidance:
        positive = out(sheet.add(group, "FluxGuidance", conditioning=positive, guidance=guidance))
    return Prompts(positive, negative)


def route(sheet: Sheet, model: Out, *, column: int = 2, **settings: Any) -> Out:
    group = sheet.group("How the two share the picture", column, 1, color="#a1309b")
    return out(sheet.add(group, "KLLayerRouter", model=model, **settings))


def sample(sheet: Sheet, group: Any, model: Out, base: Model, prompts: Prompts, how: Sampling, **more: Any) -> Out:
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


def stack_plainly(sheet: Sheet, pair: Out, base: Model, prompts: Prompts, how: Sampling, *, column: int = 3) -> Out:
    """The plain stack of the same two LoRAs from the same seed: its picture."""
    group = sheet.group("The plain stack, same seed", column, 1, color=PLAIN)
    router = sheet.add(group, "KLLayerRouter", "Plain stacking", model=pair, policy="sum", below=110)
    latent = sample(sheet, group, out(router), base, prompts, how)
    picture = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    sheet.add(group, "PreviewImage", "The plain stack", images=picture)
    return picture


def look_at(sheet: Sheet, plain: Out, fused: Out, prefix: str, *, column: int = 4, group: Any = None) -> None:
    group = group or sheet.group("The picture, and beside the plain stack", column, color=LOOK, width=460)
    sheet.add(
        group, "SaveImage", "This subject, in that style", images=fused, filename_prefix=f"lora_conductor/{prefix}"
    )
    sheet.add(group, "ImageCompare", "The plain stack | fused", image_a=plain, image_b=fused)


def report_on(sheet: Sheet, model: Out, latent: Out, *, column: int = 5) -> Out:
    """The routing report; the latent goes on through it."""
    group = sheet.group("Who drew what", column, color=LOOK, width=400)
    report = sheet.add(group, "RoutingReport", model=model, latent=latent)
    sheet.add(group, "PreviewAny", "In words", source=out(report, 2), tall=420)
    return out(report)


def draw_whole(sheet: Sheet, base: Model, pair: Out, prompts: Prompts, how: Sampling, prefix: str) -> None:
    """Router, both samplers, picture, comparison and report of the plain templates."""
    routed = route(sheet, pair)
    group = sheet.group("Fused", 3, color=SINK)
    latent = sample(sheet, group, routed, base, prompts, how)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = stack_plainly(sheet, pair, base, prompts, how)
    look_at(sheet, plain, fused, prefix)
    report_on(sheet, routed, latent)
