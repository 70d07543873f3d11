"""Every kind of adapter on single layers of every geometry, against ComfyUI's own merge computed in float64."""

import comfy.lora
import pytest
import torch

from lora_conductor.fusion.base_layer import BaseLayer
from lora_conductor.fusion.geometry import Geometry
from lora_conductor.fusion.layers import FusedLayer
from lora_conductor.host.adapters import Unroutable, applicable, check_mergeable, delta_of

from .adapter_files import KINDS, TUCKER_KINDS, Maker

LAYERS = {
    "linear": lambda: torch.nn.Linear(48, 32),
    "square": lambda: torch.nn.Linear(32, 32, bias=False),
    "conv1d": lambda: torch.nn.Conv1d(24, 16, 3, 2, 1),
    "conv2d": lambda: torch.nn.Conv2d(24, 32, 3, 1, 1),
    "conv2d_1x1": lambda: torch.nn.Conv2d(24, 32, 1),
    "conv2d_strided": lambda: torch.nn.Conv2d(24, 16, 3, (2, 3), (0, 1), (2, 1), padding_mode="circular"),
    "conv2d_same": lambda: torch.nn.Conv2d(24, 16, (3, 2), 1, "same", padding_mode="replicate"),
    "conv2d_patches": lambda: torch.nn.Conv2d(24, 16, 2, 2, bias=False),
    "conv3d": lambda: torch.nn.Conv3d(24, 16, (1, 3, 2), (1, 2, 2), (0, 1, 0)),
    "grouped": lambda: torch.nn.Conv2d(48, 32, 3, 1, 1, groups=2),
    "depthwise": lambda: torch.nn.Conv1d(32, 32, 3, 1, 1, groups=32),
}
CASES = [(kind, layer) for kind in KINDS for layer in LAYERS] + [(kind, "conv2d") for kind in TUCKER_KINDS]
PREFIX = "diffusion_model.layer"


def geometry_of(module):
    if isinstance(module, torch.nn.Linear):
        return Geometry(module.in_features, module.out_features)
    padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
    return Geometry(
        module.in_channels,
        module.out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        padding,
        tuple(module.dilation),
        module.padding_mode,
        module.groups,
    )


def inputs(module, batch=2):
    if isinstance(module, torch.nn.Linear):
        return torch.randn(batch, 5, module.in_features)
    return torch.randn(batch, module.in_channels, *[9] * len(module.kernel_size))


def patch_for(kind, shape, seed=0, size=0.5):
    tensors = {**KINDS, **TUCKER_KINDS}[kind](Maker(seed, size, 3**-0.5), shape)
    loaded = comfy.lora.load_lora(
        {f"{PREFIX}.{name}": t for name, t in tensors.items()}, {PREFIX: f"{PREFIX}.weight"}, log_missing=False
    )
    return applicable(loaded[f"{PREFIX}.weight"])


def merged(patch, weight, strength, dtype=torch.float64, offset=None):
    """Core's own merge. Its rotations are made in float32 whatever is asked for, and applied in the weight's dtype."""
    weight = weight.detach().to(dtype, copy=True)
    rotates = getattr(patch, "name", "") in ("oft", "boft")
    return comfy.lora.calculate_weight(
        [(strength, patch, 1.0, offset, None)], weight, "key", torch.float32 if rotates else dtype
    )


def run(module, geometry, deltas, x, dtype=torch.float32):
    layer = FusedLayer("layer", geometry, deltas, dtype)
    base = BaseLayer(module, geometry, {})
    return layer.fuse(x, module(x), lambda *_: {}, base), layer


def with_weight(module, weight, x):
    """The layer in float64 with another weight."""
    double = type(module)(**_arguments(module)).double().requires_grad_(False)
    double.weight.copy_(weight)
    if module.bias is not None:
        double.bias.copy_(module.bias.double())
    return double(x.double())


def _arguments(module):
    if isinstance(module, torch.nn.Linear):
        return {"in_features": module.in_features, "out_features": module.out_features, "bias": module.bias is not None}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}


def merged_by_core(kind, name):
    return name in ("grouped", "depthwise") and any(word in kind for word in ("glora", "dora_in", "oft"))


@pytest.mark.parametrize("strength", [1.0, 0.7, -1.3])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_layer_equals_cores_merge(kind, name, strength, record_property):
    torch.manual_seed(3)
    module = LAYERS[name]().requires_grad_(False)
    geometry, x = geometry_of(module), inputs(module)
    patch = patch_for(kind, geometry.weight_shape)
    if merged_by_core(kind, name):
        with pytest.raises(Unroutable, match="not routed"):
            delta_of(patch, geometry, None)
        check_mergeable(patch, geometry.weight_shape)
        return
    delta = delta_of(patch, geometry, None)
    wanted = merged(patch, module.weight, strength)
    change = wanted - module.weight.double()
    assert change.norm() > 0.01 * module.weight.norm(), "the adapter should matter"

    out, layer = run(module, geometry, [("subject", strength, delta)], x)
    truth = with_weight(module, wanted, x)
    assert float((out - truth).abs().max() / (truth.max() - truth.min())) < 2e-6

    layer.read_weight = lambda: module.weight
    deltas = layer.segment_deltas(layer.segments[0])
    error = float((deltas.dense("subject").double() - change).norm() / change.norm())
    record_property(f"{kind} {name} dW", error)
    assert error < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_layer_is_no_worse_than_cores_merge(kind, record_property):
    """bfloat16, against the same numbers in float64: rounding a delta costs no more than rounding a merged weight."""
    ours, core = [], []
    for seed, layer in enumerate([(96, 64), (64, 128), (128, 128), (256, 64)] * 3):
        torch.manual_seed(seed)
        module = torch.nn.Linear(*layer).bfloat16().requires_grad_(False)
        x = torch.randn(4, 32, layer[0]).bfloat16()
        patch = patch_for(kind, (layer[1], layer[0]), seed, size=0.1)
        truth = with_weight(module, merged(patch, module.weight, 0.7), x)
        out, _ = run(
            module,
            geometry_of(module),
            [("subject", 0.7, delta_of(patch, geometry_of(module), None))],
            x,
            torch.bfloat16,
        )
        weight = merged(patch, module.weight, 0.7, torch.float32).bfloat16()
        ours.append(float((out - truth).norm() / truth.norm()))
        core.append(float((torch.nn.functional.linear(x, weight, module.bias) - truth).norm() / truth.norm()))
    ratio = sum(ours) / sum(core)
    record_property(f"{kind} bfloat16 error over core's", ratio)
    # Core multiplies the rotations of these by alpha, which makes their deltas larger than the weights.
    assert ratio <= (2.0 if kind.startswith("dora") and kind.endswith("oft") else 1.2)
