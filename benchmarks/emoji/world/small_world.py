"""The small world in this process, through ComfyUI's own loaders and sampler.

enter_host()                      # of benchmarks.host; before anything of comfy or lora_conductor is imported
small = SmallWorld(folder)        # folder with the files of the small world, default: the shipped assets
latents = small.sample(model, "fox", "openmoji", seeds=[1, 2])
pictures = small.decode(latents)  # [2, 3, 64, 64] in [0, 1]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repo_paths import ASSETS

from . import files, small_unet
from .kinds import BASE, UNET, Kind
from .rendered_styles import RENDERED


class SmallWorld:
    """Models, tokens and LoRA files of the small world.

    Args:
        folder: searched, with its subfolders and before the shipped assets, for the world's files.
        kind: which of the small worlds.
        dtype: of the diffusion model; bf16 halves the time on CPUs that have it, the figures we report are fp32's.
    """

    def __init__(self, folder: Path | None = None, kind: Kind = BASE, dtype: torch.dtype = torch.float32) -> None:
        import comfy.sd
        import comfy.utils

        if kind is UNET:
            small_unet.register()
        self.kind = kind
        self.folders = [ASSETS] if folder is None else [folder, ASSETS]
        model_file = str(self.file(kind.model))
        self.model = comfy.sd.load_diffusion_model(model_file, model_options={"dtype": dtype})
        # Under inference mode the autoencoder could not be differentiated later.
        with torch.inference_mode(False):
            self.vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(self.file(files.AUTOENCODER))))
        tokens = comfy.utils.load_torch_file(str(self.file(kind.tokens)))
        # Where no pooled vector is heeded there is no table of them.
        self.tables = tokens["tok"].float(), tokens.get("pool", tokens["tok"]).float()
        names = json.loads(self.file(files.WORDS).read_text(encoding="utf-8"))
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
        return self.file(files.lora(role, name, self.kind.loras))

    def conditioning(self, tokens: Sequence[str]) -> list[list[Any]]:
        """CONDITIONING of the given token names: context [1, n, 256], pooled_output [1, 256], guidance if any."""
        ids = torch.tensor([self._ids[token] for token in tokens])
        tok, pool = self.tables
        extra: dict[str, Any] = {"pooled_output": pool[ids].mean(dim=0, keepdim=True)}
        if self.kind.guidance is not None:
            extra["guidance"] = self.kind.guidance  # as ComfyUI's FluxGuidance does
        return [[tok[ids][None], extra]]

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
        self,
        model: Any,
        subject: str,
        style: str | None,
        seeds: Sequence[int],
        steps: int | None = None,
        cfg: float | None = None,
    ) -> Tensor:
        """Euler on the simple schedule through comfy.sample: latents [len(seeds), 16, 8, 8].

        Steps and CFG are the world's unless given.
        Each picture has its own seed's noise, so it does not depend on what else is in the batch.
        """
        import comfy.sample

        empty = torch.zeros(len(seeds), 16, 8, 8)
        noise = torch.cat([comfy.sample.prepare_noise(empty[:1], seed) for seed in seeds])
        with torch.inference_mode():
            return comfy.sample.sample(
                model,
                noise,
                steps or self.kind.steps[0],
                self.kind.cfg if cfg is None else cfg,
                "euler",
                "simple",
                self.prompt(subject, style),
                self.conditioning(["<null>"] * 4),
                empty,
                disable_pbar=True,
                seed=seeds[0],
            )

    def predict(self, x: Tensor, level: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """What the model itself says of noised latents at the levels it was trained on (`objectives`): guidance 1."""
        model = self.model.model.diffusion_model
        if self.kind is UNET:
            return model(x, level, context, transformer_options={})
        guidance = None if self.kind.guidance is None else torch.ones(len(x))
        return model(x, level, context, pooled, guidance, transformer_options={})

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, 16, 8, 8] -> pictures [N, 3, 64, 64] in [0, 1]."""
        with torch.inference_mode():
            return self.vae.decode(latents).movedim(-1, 1).float().clamp(0, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, 64, 64] in [0, 1] -> latents [N, 16, 8, 8]."""
        with torch.inference_mode():
            return self.vae.encode(pictures.movedim(1, -1))

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, 64, 64] in [0, 1] after the autoencoder, which all that is sampled has been through."""
        return self.decode(self.encode(pictures))
