"""The files of models that templates name, and where each comes from: as ComfyUI's own public templates have them.

Those that ComfyUI has no template for stand in ``ELSEWHERE``.
"""

from __future__ import annotations

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
