"""Convolutional families: UNets of Stable Diffusion and its relatives, Stable Cascade."""

from __future__ import annotations

from ..tiny import UNET
from .family import Family

SEQUENTIAL = {**UNET, "num_classes": "sequential"}
VIDEO = {
    **SEQUENTIAL,
    "in_channels": 8,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "disable_temporal_crossattention": False,
}
# Sizes and crops are embedded as 256 numbers each, beside the pooled text.
SIX_SIZES, FIVE_SIZES = 6 * 256, 5 * 256
CASCADE = {"c_hidden": [32, 64], "nhead": [4, 4], "blocks": [[1, 1], [1, 1]], "block_repeat": [[1, 1], [1, 1]]}


def pooled(width):
    return lambda normal: {"pooled_output": normal(1, width)}


UNETS = [
    Family("SD15", UNET, (4, 8, 8), (4, 48)),
    Family("SD15_instructpix2pix", {**UNET, "in_channels": 8}, (4, 8, 8), (4, 48)),
    Family("SD20", UNET, (4, 8, 8), (4, 48)),
    Family("SD21UnclipL", {**SEQUENTIAL, "adm_in_channels": 64}, (4, 8, 8), (4, 48)),
    Family("SDXL", {**SEQUENTIAL, "adm_in_channels": 32 + SIX_SIZES}, (4, 8, 8), (4, 48), pooled(32)),
    Family(
        "SDXL_instructpix2pix",
        {**SEQUENTIAL, "in_channels": 8, "adm_in_channels": 32 + SIX_SIZES},
        (4, 8, 8),
        (4, 48),
        pooled(32),
    ),
    Family("SDXLRefiner", {**SEQUENTIAL, "adm_in_channels": 32 + FIVE_SIZES}, (4, 8, 8), (4, 48), pooled(32)),
    Family("SD_X4Upscaler", {**UNET, "in_channels": 7, "disable_self_attentions": [True, False]}, (4, 8, 8), (4, 48)),
    Family("LotusD", SEQUENTIAL, (4, 8, 8), (4, 48)),
    Family(
        "Stable_Zero123",
        {**UNET, "in_channels": 8, "context_dim": 768},
        (4, 8, 8),
        (4, 48),
        state=lambda normal: {"cc_projection.weight": normal(768, 48), "cc_projection.bias": normal(768)},
    ),
    Family("SVD_img2vid", {**VIDEO, "adm_in_channels": 768}, (4, 8, 8), (1, 48), batch=3),
    Family("SV3D_p", {**VIDEO, "adm_in_channels": 1280}, (4, 8, 8), (1, 48), batch=3),
    Family(
        "Stable_Cascade_C",
        {**CASCADE, "c_hidden": [64, 64], "c_cond": 48, "c_clip_text": 48, "c_clip_text_pooled": 32},
        (16, 8, 8),
        (4, 48),
        pooled(32),
    ),
    Family(
        "Stable_Cascade_B",
        {
            "c_hidden": [32, 32, 64, 64],
            "nhead": [-1, -1, 4, 4],
            "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
            "block_repeat": [[1, 1, 1, 1], [2, 1, 1, 1]],
            "c_cond": 48,
            "c_clip": 32,
        },
        (4, 32, 32),
        (4, 48),
        pooled(32),
    ),
]
