"""The small world in this process, through ComfyUI's own loaders and sampler.

import world
world.enter_host()                      # before anything of comfy or lora_conductor is imported
small = world.SmallWorld(folder)        # folder with the files of the small world, default: the shipped assets
latents = small.sample(model, "fox", "openmoji", seeds=[1, 2])
pictures = small.decode(latents)        # [2, 3, 64, 64] in [0, 1]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rendered_styles import RENDERED

HERE = Path(__file__).resolve().parent
ASSETS = HERE / "assets"
sys.path.append(str(HERE.parents[1] / "tools"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TUNE = ("panda", "octopus", "pizza", "rocket", "guitar", "pile-of-poo")
TEST = ("fox", "sunflower", "hamburger", "sailboat", "alien", "crown")
# Kept for the last: no setting, no default and no prompt was chosen with these in sight.
FRESH = (
    "penguin", "elephant", "tiger-face", "frog", "strawberry", "pineapple", "grapes", "bus", "police-car",
    "smiling-face-with-sunglasses", "skull", "soccer-ball",
)  # fmt: skip
STYLES = ("openmoji", "fluent-emoji-high-contrast")
SUBJECTS = {"tune": TUNE, "test": TEST, "fresh": FRESH}
SPLIT_STYLES = {
    "tune": (*STYLES, "duotone", "rotated"),
    "test": STYLES,
    "fresh": (*STYLES, "ballpoint", "sepia", "crayon", "stencil"),
}
"""The held-out styles of each split. Those that are not of STYLES are rendered, see ``rendered_styles.py``."""
STEPS, CFG = 16, 2.5


def chosen(subjects: str, styles: str | None) -> tuple[Sequence[str], Sequence[str]]:
    """Subjects and styles of a command line: a split's name or names with commas; by default the split's own styles."""
    return (
        SUBJECTS.get(subjects) or subjects.split(","),
        styles.split(",") if styles else SPLIT_STYLES.get(subjects, STYLES),
    )


def enter_host() -> None:
    """Make ComfyUI and this pack importable in this process, on the CPU."""
    from bootstrap_host import find_host
    from repo_paths import link_package

    repository = str(HERE.parents[1])
    # The repository's folder `nodes` must not stand in for ComfyUI's module of that name.
    sys.path[:] = [str(find_host()), str(link_package()), *(p for p in sys.path if p not in ("", repository))]
    import torchvision_shim

    torchvision_shim.install()
    from comfy.cli_args import args

    args.cpu = True


class SmallWorld:
    """Models, tokens and LoRA files of the small world.

    Args:
        folder: searched, with its subfolders and before the shipped assets, for the world's files.
        dtype: of the diffusion model; bf16 halves the time on CPUs that have it, the figures we report are fp32's.
    """

    def __init__(self, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> None:
        import comfy.sd
        import comfy.utils

        self.folders = [ASSETS] if folder is None else [folder, ASSETS]
        model_file = str(self.file("emoji_tinyflux_fp8_e4m3fn.safetensors"))
        self.model = comfy.sd.load_diffusion_model(model_file, model_options={"dtype": dtype})
        # Under inference mode the autoencoder could not be differentiated later.
        with torch.inference_mode(False):
            self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(self.file("emoji_taef1_vae_fp16.safetensors"))))
        tokens = comfy.utils.load_torch_file(str(self.file("emoji_tokens_fp16.safetensors")))
        self._tok, self._pool = tokens["tok"].float(), tokens["pool"].float()
        names = json.loads(self.file("emoji_tokens.json").read_text(encoding="utf-8"))
        self._ids = {name: i for i, name in enumerate(names["tokens"])}
        self._names = names
        # The base was trained with eight style triggers; those that no set took are the rendered styles'.
        own = names["sks_style_index"]
        self._style_triggers = {**own, **{name: len(own) + i for i, name in enumerate(RENDERED)}}

    def file(self, name: str) -> Path:
        """Path of a file of the world. Raises FileNotFoundError naming where it was looked for."""
        for folder in self.folders:
            if found := sorted(folder.rglob(name)):
                return found[0]
        raise FileNotFoundError(f"{name} is in none of {', '.join(str(folder) for folder in self.folders)}")

    def lora(self, role: str, name: str) -> Path:
        """The LoRA file of a subject (role "subject") or a style (role "style")."""
        return self.file(f"lora_{role}_{name}.safetensors")

    def conditioning(self, tokens: Sequence[str]) -> list[list[Any]]:
        """CONDITIONING of the given token names: context [1, n, 256] and pooled_output [1, 256]."""
        ids = torch.tensor([self._ids[token] for token in tokens])
        return [[self._tok[ids][None], {"pooled_output": self._pool[ids].mean(dim=0, keepdim=True)}]]

    def prompt(self, subject: str, style: str | None) -> list[list[Any]]:
        """Positive conditioning of a held-out subject in a held-out style (the LoRAs' trigger tokens)."""
        return self.conditioning(self.prompt_tokens(subject, style))

    def prompt_tokens(self, subject: str, style: str | None) -> list[str]:
        """The tokens of :meth:`prompt`: beginning, style, subject, class."""
        subject_token = f"<sks_subject{self._names['sks_subject_index'][subject]}>"
        return ["<bos>", self.style_token(style), subject_token, self.class_token(subject)]

    def style_token(self, style: str | None) -> str:
        """The trigger of a held-out style's LoRA."""
        return "<null>" if style is None else f"<sks_style{self._style_triggers[style]}>"

    def class_token(self, subject: str) -> str:
        return f"class:{self._names['class_of'][subject]}"

    def style_prompt(self, style: str) -> list[list[Any]]:
        """Positive conditioning of a held-out style with no subject."""
        return self.conditioning(["<bos>", self.style_token(style), "<null>", "<null>"])

    def sample(
        self, model: Any, subject: str, style: str | None, seeds: Sequence[int], steps: int = STEPS, cfg: float = CFG
    ) -> Tensor:
        """Euler on the simple schedule through comfy.sample: latents [len(seeds), 16, 8, 8].

        Each picture has its own seed's noise, so it does not depend on what else is in the batch.
        """
        import comfy.sample

        empty = torch.zeros(len(seeds), 16, 8, 8)
        noise = torch.cat([comfy.sample.prepare_noise(empty[:1], seed) for seed in seeds])
        with torch.inference_mode():
            return comfy.sample.sample(
                model,
                noise,
                steps,
                cfg,
                "euler",
                "simple",
                self.prompt(subject, style),
                self.conditioning(["<null>"] * 4),
                empty,
                disable_pbar=True,
                seed=seeds[0],
            )

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, 16, 8, 8] -> pictures [N, 3, 64, 64] in [0, 1]."""
        with torch.inference_mode():
            return self.vae.decode(latents).movedim(-1, 1).float().clamp(0, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, 64, 64] in [0, 1] -> latents [N, 16, 8, 8]."""
        with torch.inference_mode():
            return self.vae.encode(pictures.movedim(1, -1))


def contact_sheet(columns: dict[str, Tensor], path: Path, scale: int = 2) -> None:
    """Save pictures as a PNG: one labelled column each, [rows, 3, 64, 64] in [0, 1]; missing rows stay white.

    scale: enlargement, without smoothing.
    """
    from PIL import Image, ImageDraw

    side, gap, head = 64 * scale, 4, 26
    rows = max(len(pictures) for pictures in columns.values())
    sheet = Image.new("RGB", (len(columns) * (side + gap) + gap, head + rows * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (label, pictures) in enumerate(columns.items()):
        left = gap + c * (side + gap)
        draw.text((left, 2), label.replace(" ", "\n", 1), fill="black", font_size=10)
        for r, picture in enumerate(pictures):
            array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            tile = Image.fromarray(array).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, head + r * (side + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=60, optimize=True)  # of JPEGs
