"""Every node of core's that makes a MODEL of a MODEL, before our loader and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .ways import Put, Way, World, called

SECTION = "Model patches"
Inputs = dict[str, Any] | Callable[[World], dict[str, Any]]
Patch = Callable[[World, ModelPatcher], ModelPatcher]

# By family: node -> what it is given besides its defaults.
NODES: dict[str, dict[str, Inputs]] = {
    "SD15": {
        "APG": {},
        "CFGNorm": {},
        "CFGOverride": {"cfg": 3.0, "start_percent": 0.3},
        "CFGZeroStar": {},
        "ContextWindowsManual": {"context_length": 2, "context_overlap": 1, "dim": 2},
        "DifferentialDiffusion": {},
        "EasyCache": {"reuse_threshold": 3.0},
        "Epsilon Scaling": {"scaling_factor": 1.05},
        "FreSca": {},
        "FreeU": {},
        "FreeU_V2": {},
        "HyperTile": {"tile_size": 32},
        "LatentApplyOperationCFG": lambda world: {"operation": lambda latent, **_: latent * 0.9},
        "LazyCache": {"reuse_threshold": 3.0},
        "Mahiro": {},
        "ModelComputeDtype": {"dtype": "fp32"},
        "ModelSamplingContinuousEDM": {"sampling": "v_prediction"},
        "ModelSamplingContinuousV": {},
        "ModelSamplingDiscrete": {"sampling": "v_prediction", "zsnr": True},
        "NAGuidance": {},
        "PatchModelAddDownscale": {"block_number": 1, "end_percent": 1.0},
        "PerpNeg": lambda world: {"empty_conditioning": world.conditioning(5)},
        "PerturbedAttentionGuidance": {},
        "RenormCFG": {},
        "RescaleCFG": {},
        "SelfAttentionGuidance": {},
        "TCFG": {},
        "TemporalScoreRescaling": {},
        "TomePatchModel": {"ratio": 0.5},
        "UNetCrossAttentionMultiply": {"q": 1.1, "out": 1.2},
        "UNetSelfAttentionMultiply": {"k": 0.9, "out": 1.2},
        "UNetTemporalAttentionMultiply": {},
        "VideoLinearCFGGuidance": {},
        "VideoTriangleCFGGuidance": {},
    },
    "Flux": {
        "EasyCache": {"reuse_threshold": 3.0},
        "FluxKVCache": {},
        "LazyCache": {"reuse_threshold": 3.0},
        "ModelSamplingFlux": {},
        "NAGuidance": {},
        "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "0", "end_percent": 1.0},
        "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "0"},
    },
    "SD3": {
        "ModelNoiseScale": {"noise_scale": 1.2},
        "ModelSamplingSD3": {},
        "SkipLayerGuidanceSD3": {"layers": "0", "end_percent": 1.0},
    },
    "AuraFlow": {"ModelSamplingAuraFlow": {}},
    "Lumina2": {"RenormCFG": {"renorm_cfg": 0.5}, "ScaleROPE": {"scale_x": 1.2}},
    "Stable_Cascade_C": {"ModelSamplingStableCascade": {}},
    "WAN21_T2V": {
        "WanContextWindowsManual": {"context_length": 5, "context_overlap": 4},
        "EasyCache": {"reuse_threshold": 3.0},
        "wanBlockSwap": {},
    },
}
ELSEWHERE: dict[str, str] = {
    "LoraLoader": "the reference itself",
    "LoraLoaderModelOnly": "the reference itself",
    "LoraLoaderBypass": "under Prompts",
    "LoraLoaderBypassModelOnly": "under Prompts",
    "LoraModelLoader": "the reference itself, from a node that trained the LoRA",
    "HypernetworkLoader": "needs a trained hypernetwork; changes keys and values, as NegPip does under Mechanisms",
    "MultiGPU_WorkUnits": "tests/host/fusing/test_two_devices.py",
    "SelectModelDevice": "tests/host/fusing/test_two_devices.py",
    "TorchCompileModel": "under Mechanisms, with the backend that needs no compiler",
    "ARVideoI2V": "needs a VAE and a picture; sets an option of one model",
    "ChromaRadianceOptions": "sets options of one model",
    "HiDreamO1PatchSeamSmoothing": "a function around the prediction of one model",
    "LTXVContextWindows": "ContextWindowsManual with other defaults",
    "LTXVReferenceAudio": "needs an audio VAE; a second prompt, as NAGuidance",
    "MiniMaxH3SigmaShift": "another noise schedule, as ModelSamplingSD3",
    "ModelSamplingLTXV": "ModelSamplingFlux with other defaults",
    "AnimaLLLiteApply": "needs a trained patch of one model; a network beside, as ControlNet",
    "QwenImageDiffsynthControlnet": "needs a trained patch of one model; a network beside, as ControlNet",
    "SUPIRApply": "needs a trained patch of one model; a network beside, as ControlNet",
    "USOStyleReference": "needs a trained patch of one model; a network beside, as ControlNet",
    "WanInfiniteTalkToVideo": "needs a trained patch of one model; a network beside, as ControlNet",
    "WanUni3CControlnetApply": "needs a trained patch of one model; a network beside, as ControlNet",
    "ZImageFunControlnet": "needs a trained patch of one model; a network beside, as ControlNet",
    "TripoSplatSamplingPreview": "previews of one model",
}
MERGES = "ModelMerge"  # and so on: tests/host/fusing/test_weights.py
SIZES = {"WAN21_T2V": (1, 16, 6, 8, 8)}
INSIDE = "changes the layer's input inside its forward: ours take the input that the layer is given"
DIFFERS = {
    ("a LoRA layer's forward, object patch", "before"): INSIDE,
    ("a LoRA layer's forward, object patch", "after"): INSIDE,
}


def sampled(world: World, model: ModelPatcher) -> Tensor:
    size = SIZES.get(world.family.model)
    how: dict[str, Any] = {} if size is None else {"latent_image": torch.zeros(size)}
    return world.sample(model, **how)


def by_node(kind: str, inputs: Inputs) -> Patch:
    def patch(world: World, model: ModelPatcher) -> ModelPatcher:
        given = inputs(world) if callable(inputs) else inputs
        return called(kind, model=model, **given)[0]

    return patch


def both_orders(section: str, row: str, patch: Patch, family: str = "SD15") -> list[Way]:
    """The patch before our loader, and after it."""

    def before(world: World, model: ModelPatcher, put: Put) -> Tensor:
        return sampled(world, put(patch(world, model)))

    def after(world: World, model: ModelPatcher, put: Put) -> Tensor:
        return sampled(world, patch(world, put(model)))

    return [
        Way(section, row, "before", before, family, DIFFERS.get((row, "before"), "")),
        Way(section, row, "after", after, family, DIFFERS.get((row, "after"), "")),
    ]


WAYS = [
    way
    for family, kinds in NODES.items()
    for kind, inputs in kinds.items()
    for way in both_orders(SECTION, kind if family == "SD15" else f"{kind}, {family}", by_node(kind, inputs), family)
]
