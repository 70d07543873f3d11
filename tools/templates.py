"""Draw the templates anew, into ``example_workflows/``: ``make templates``.

    templates.py [NAME ...]

What they are put together from is in ``template_parts.py``, the files of models in ``template_files.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bootstrap_host import HostError, find_host
from comfy_server import ComfyServer
from host_base import make_base
from repo_paths import REPO
from template_files import (
    CANNY,
    CLIP_VISION,
    DINO,
    ILLUSTRIOUS,
    KLEIN,
    KLEIN_QWEN,
    KLEIN_VAE,
    SDXL,
    Z_IMAGE,
    Z_QWEN,
    Z_VAE,
)
from template_parts import (
    CFG,
    ENOUGH,
    FILES,
    FLUX_SAMPLING,
    LOOK,
    LOOKING,
    NO_CFG,
    PLAIN,
    SDXL_SAMPLING,
    SINK,
    WORDS,
    Model,
    Prompts,
    Sampling,
    draw_whole,
    load_checkpoint,
    load_flux,
    load_pair,
    look_at,
    report_on,
    route,
    sample,
    stack_plainly,
    steps_of,
    write_prompt,
    write_prompts,
)
from template_sheet import Out, Sheet, out, write

EXAMPLES = REPO / "example_workflows"


def sdxl(sheet: Sheet) -> None:
    base = load_checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = load_pair(sheet, base)
    draw_whole(sheet, base, pair, write_prompts(sheet, clip), SDXL_SAMPLING, "sdxl")
    sheet.note(
        "This subject, in that style: SDXL",
        steps_of(FILES + " Any SDXL checkpoint will do.", WORDS, LOOKING + ENOUGH + CFG),
        width=1180,
    )


def illustrious(sheet: Sheet) -> None:
    base = load_checkpoint(sheet, ILLUSTRIOUS, (832, 1216), skip=-2)
    pair, clip = load_pair(sheet, base)
    prompts = write_prompts(
        sheet,
        clip,
        "masterpiece, best quality, SUBJECT_TRIGGER, 1girl, sitting, garden, STYLE_TRIGGER",
        "worst quality, low quality, bad anatomy, signature, watermark",
    )
    draw_whole(sheet, base, pair, prompts, Sampling(28, 5.5, "euler_ancestral", "normal"), "illustrious")
    sheet.note(
        "This character, in that style: Illustrious, NoobAI, Pony",
        steps_of(
            FILES
            + " These LoRAs often trained the text encoder too: CLIP goes through the loader, behind CLIP skip 2.",
            WORDS + " Tags are parted by commas, quality tags stand first: *masterpiece, best quality* for Illustrious "
            "and NoobAI, *score_9, score_8_up, score_7_up* for Pony.",
            LOOKING + ENOUGH + CFG,
        ),
        width=1180,
    )


def flux(sheet: Sheet) -> None:
    base = load_flux(sheet)
    pair, clip = load_pair(sheet, base)
    draw_whole(sheet, base, pair, write_prompt(sheet, clip, guidance=3.5), FLUX_SAMPLING, "flux")
    sheet.note(
        "This subject, in that style: FLUX.1-dev, at CFG 1",
        steps_of(FILES, WORDS + " FLUX reads sentences.", LOOKING + ENOUGH + NO_CFG),
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
    pair, words = load_pair(sheet, base, with_clip=False)
    draw_whole(sheet, base, pair, write_prompt(sheet, words), Sampling(8, 1.0, "res_multistep", "simple"), "z_image")
    sheet.note(
        "This subject, in that style: Z-Image-Turbo, at CFG 1",
        steps_of(
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
    pair, words = load_pair(sheet, base, with_clip=False)
    prompts = write_prompt(sheet, words)
    routed = route(sheet, pair)

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
    look_at(sheet, plain, fused, "flux2_klein")
    report_on(sheet, routed, latents)
    sheet.note(
        "This subject, in that style: FLUX.2 klein 4B, at CFG 1",
        steps_of(
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
    base = load_checkpoint(sheet, SDXL, (1024, 1024))
    group = sheet.group("Pictures, and who looks at them", 1, color="#3f789e")
    subject = sheet.add(group, "LoadImage", "Photo of the subject", image="example.png")
    style = sheet.add(group, "LoadImage", "Picture in the style", image="example.png")
    references = sheet.add(group, "GuidanceReferences", subject_image=out(subject), style_image=out(style))
    encoders = _encoders(sheet, group)
    pair, clip = load_pair(sheet, base, column=2)
    prompts = write_prompts(sheet, clip, column=3)
    routed = route(sheet, pair, column=3)
    group = sheet.group("Fused and guided", 4, color=SINK)
    guided = {"kind": "MetricGuidedSampler", "vae": base.vae, "references": out(references), **encoders}
    latent = sample(sheet, group, routed, base, prompts, SDXL_SAMPLING, final_scores=True, **guided)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = stack_plainly(sheet, pair, base, prompts, SDXL_SAMPLING, column=5)
    look_at(sheet, plain, fused, "sdxl_guided", column=6)
    report = sheet.group("The scores", 5, color=LOOK)
    sheet.add(report, "PreviewAny", "Guidance scores", source=Out(latent.node, 1))
    sheet.note(
        "Guidance by a photo of the subject and a picture in the style: SDXL",
        steps_of(
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
    base = load_checkpoint(sheet, SDXL, (1024, 1024))
    group = sheet.group("Who looks at the picture", 1, color="#3f789e")
    encoders = _encoders(sheet, group)
    pair, clip = load_pair(sheet, base, column=2)
    alone = sheet.group("What each LoRA draws alone", 1, 1, color=SINK)
    subject = sheet.add(alone, "CLIPTextEncode", "Subject alone", clip=clip, text="SUBJECT_TRIGGER, plain background")
    style = sheet.add(alone, "CLIPTextEncode", "Style alone: something else", clip=clip, text="a house, STYLE_TRIGGER")
    prompts = write_prompts(sheet, clip, column=3)
    routed = route(sheet, pair, column=3)
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
    latent = sample(sheet, group, routed, base, prompts, SDXL_SAMPLING, **guided)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = stack_plainly(sheet, pair, base, prompts, SDXL_SAMPLING, column=5)
    look_at(sheet, plain, fused, "sdxl_own_references", column=6)
    report = sheet.group("The scores", 5, color=LOOK)
    sheet.add(report, "PreviewAny", "Guidance scores", source=Out(latent.node, 1))
    sheet.note(
        "No picture at hand: references drawn by the LoRAs themselves, SDXL",
        steps_of(
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
    base = load_checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = load_pair(sheet, base)
    prompts = write_prompts(sheet, clip)
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
        steps_of(
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
    base = load_checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = load_pair(sheet, base)
    prompts = write_prompts(sheet, clip)
    routed = route(sheet, pair)
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
        steps_of(
            FILES + " Both are needed." + OLD_HOST,
            WORDS + " Set the first seed in the group on the left; four seeds take twenty pictures.",
            "**Queue.** Without encoders there are still sheet, burn and vote. The report begins with a verdict and "
            "what to turn next. Then vote on **Measure My Pair**: left, right or neither, without knowing which is "
            "which. Turn one thing, queue again: each setting has its own tally, kept with the workflow.",
        ),
        width=1180,
    )


def plan(sheet: Sheet) -> None:
    base = load_checkpoint(sheet, SDXL, (1024, 1024))
    pair, clip = load_pair(sheet, base)
    prompts = write_prompts(sheet, clip)
    routed = route(sheet, pair)
    group = sheet.group("Fused: measured", 3, color=SINK)
    latent = sample(sheet, group, routed, base, prompts, SDXL_SAMPLING)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = stack_plainly(sheet, pair, base, prompts, SDXL_SAMPLING)
    group = sheet.group("The same decisions again", 4, color="#a1309b", width=400)
    saved = sheet.add(group, "SaveRoutingPlan", model=routed, latent=latent, filename_prefix="routing_plans/plan")
    again = sheet.add(group, "KLLayerRouter", "Replays the plan", model=pair, plan=out(saved, "plan"), below=110)
    latent = sample(sheet, group, out(again), base, prompts, SDXL_SAMPLING)
    replayed = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    sheet.add(group, "SaveImage", "Replayed", images=replayed, filename_prefix="lora_conductor/replayed", tall=400)
    look_at(sheet, plain, fused, "measured", column=5)
    sheet.note(
        "Keep what was decided, and repeat it: SDXL",
        steps_of(
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
    base = load_flux(sheet)
    pair, clip = load_pair(sheet, base)
    prompts = write_prompt(sheet, clip, guidance=3.5)
    routed = route(sheet, pair, freeze_after=5, emphasis=1.0)
    group = sheet.group("Fused: measured for 5 steps, then frozen", 3, color=SINK)
    latent = sample(sheet, group, routed, base, prompts, FLUX_SAMPLING)
    fused = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = stack_plainly(sheet, pair, base, prompts, FLUX_SAMPLING)
    look_at(sheet, plain, fused, "flux_frozen")
    group = sheet.group("One file of the two", 5, color="#a1309b", width=400)
    baked = sheet.add(group, "BakeFusedLoRA", model=routed, latent=latent, filename_prefix="loras/fused", below=300)
    sheet.add(group, "PreviewAny", "What was written", source=out(baked, "report"))
    sheet.note(
        "From two LoRAs to one file: freeze and bake, FLUX.1-dev",
        steps_of(
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
    base = load_checkpoint(sheet, SDXL, (832, 1216))
    pair, clip = load_pair(sheet, base)
    prompts = write_prompts(sheet, clip)
    routed = route(sheet, pair)
    group = sheet.group("Fused: first pass", 3, color=SINK)
    latent = sample(sheet, group, routed, base, prompts, SDXL_SAMPLING)
    first = out(sheet.add(group, "VAEDecode", samples=latent, vae=base.vae))
    plain = stack_plainly(sheet, pair, base, prompts, SDXL_SAMPLING)
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
    second = sample(
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
    report_on(sheet, routed, second, column=6)
    sheet.note(
        "Hires second pass, held by a ControlNet: SDXL",
        steps_of(
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
