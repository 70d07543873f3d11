"""What the files of a world are called, in whatever folder below its own or below ``assets`` they lie."""

from __future__ import annotations

ARCHIVE = "emoji64.npz"
WORDS = "emoji_tokens.json"
STYLE_SUBJECTS = "style_lora_subjects.json"
AUTOENCODER = "emoji_taef1_vae_fp16.safetensors"
MODEL = "emoji_tinyflux_fp8_e4m3fn.safetensors"
TOKENS = "emoji_tokens_fp16.safetensors"
JUDGE = "emoji_judge.safetensors"


def encoder(kind: str) -> str:
    """Of guidance: "clip" or "dino"."""
    return f"emoji_{kind}.safetensors"


def lora(role: str, name: str) -> str:
    """Of a subject (role "subject") or a style (role "style")."""
    return f"lora_{role}_{name}.safetensors"
