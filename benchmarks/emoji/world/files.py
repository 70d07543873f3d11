"""What the files of a world are called, in whatever folder below its own or below ``assets`` they lie."""

from __future__ import annotations

ARCHIVE = "emoji64.npz"
WORDS = "emoji_tokens.json"
STYLE_SUBJECTS = "style_lora_subjects.json"
AUTOENCODER = "emoji_taef1_vae_fp16.safetensors"
MODEL = "emoji_tinyflux_fp8_e4m3fn.safetensors"
DISTILLED = "emoji_tinyflux_guidance_distilled_fp8_e4m3fn.safetensors"
TOKENS = "emoji_tokens_fp16.safetensors"
UNET = "emoji_tinyunet_fp8_e4m3fn.safetensors"
UNET_TOKENS = "emoji_tinyunet_tokens_fp16.safetensors"
JUDGE = "emoji_judge.safetensors"


def encoder(kind: str) -> str:
    """Of guidance: "clip" or "dino"."""
    return f"emoji_{kind}.safetensors"


def lora(role: str, name: str, trained_on: str = "") -> str:
    """Of a subject (role "subject") or a style (role "style"). trained_on: another model than the base."""
    return f"lora_{trained_on and f'{trained_on}_'}{role}_{name}.safetensors"
