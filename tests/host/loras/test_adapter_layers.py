"""Every kind of adapter on single layers of every geometry, against ComfyUI's own merge computed in float64."""

import comfy.lora
import comfy.weight_adapter
import pytest
import torch

from lora_conductor.fusion.adapters import BaseLayer, Geometry
from lora_conductor.fusion.layers.layer import FusedLayer
from lora_conductor.host.loras import kinds
from lora_conductor.host.loras.deltas import applicable, check_mergeable, delta_of, unused_tensors
from lora_conductor.host.loras.kinds import Unroutable

from ..adapter_files import KINDS, ROWS, TUCKER_KINDS, Maker

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
IN_FLOAT32 = {row.core for row in ROWS.values() if row.in_float32}


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
    tensors = ROWS[kind].make(Maker(seed, size, 3**-0.5), shape)
    loaded = comfy.lora.load_lora(
        {f"{PREFIX}.{name}": t for name, t in tensors.items()}, {PREFIX: f"{PREFIX}.weight"}, log_missing=False
    )
    return applicable(loaded[f"{PREFIX}.weight"])


def merged(patch, weight, strength, dtype=torch.float64, offset=None):
    """Core's own merge. Some kinds it makes in float32 whatever is asked for, and applies in the weight's dtype."""
    weight = weight.detach().to(dtype, copy=True)
    made_in = torch.float32 if type(patch).__name__ in IN_FLOAT32 else dtype
    return comfy.lora.calculate_weight([(strength, patch, 1.0, offset, None)], weight, "key", made_in)


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


def test_every_kind_of_cores_is_known_and_tested():
    loaded = {adapter.__name__ for adapter in comfy.weight_adapter.adapters}
    assert set(kinds.KINDS) >= loaded, "core loads a kind that has no row"
    assert set(kinds.KINDS) == {row.core for row in ROWS.values()} - {None}


def test_kinds_that_are_not_known_are_cores_own_business():
    """A later host's, say. What derives from a kind that is known is of that kind."""

    class Newer(comfy.weight_adapter.WeightAdapterBase):
        name, weights = "newer", (torch.zeros(2, 2),)

    class Derived(comfy.weight_adapter.LoHaAdapter):
        pass

    with pytest.raises(Unroutable, match="'newer' are not known"):
        delta_of(Newer(), Geometry(48, 32), None)
    check_mergeable(Newer(), (32, 48))
    assert applicable(patch := Newer()) is patch and list(unused_tensors(patch)) == []
    assert kinds.kind_of(Derived(set(), ())) is kinds.KINDS["LoHaAdapter"]


@pytest.mark.parametrize("strength", [1.0, 0.7, -1.3])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_layer_equals_cores_merge(kind, name, strength, record_property):
    torch.manual_seed(3)
    module = LAYERS[name]().requires_grad_(False)
    geometry, x = geometry_of(module), inputs(module)
    patch = patch_for(kind, geometry.weight_shape)
    if geometry.groups != 1 and not ROWS[kind].grouped:
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
    assert ratio <= ROWS[kind].low_precision


class PackedLinear(torch.nn.Module):
    """Stands for quantised layers: the weight is bytes and a scale, and only the forward knows how to read it."""

    def __init__(self, width, out):
        super().__init__()
        self.in_features, self.out_features = width, out
        weight = torch.randn(out, width) * width**-0.5
        self.scale = weight.abs().max() / 127
        self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.randn(out), requires_grad=False)

    def unpacked(self):
        return self.weight.float() * self.scale

    def forward(self, x):
        return torch.nn.functional.linear(x, self.unpacked().to(x), self.bias.to(x))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_measured_through_the_layer(kind):
    torch.manual_seed(0)
    module, geometry, x = PackedLinear(48, 32), Geometry(48, 32), torch.randn(2, 5, 48)
    patch = patch_for(kind, (32, 48))
    out, _ = run(module, geometry, [("subject", 0.8, delta_of(patch, geometry, None))], x)
    wanted = torch.nn.functional.linear(x.double(), merged(patch, module.unpacked(), 0.8), module.bias.double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_a_fused_weight(kind):
    """A sliced adapter and a whole LoRA on one weight: each segment holds what is for it."""
    torch.manual_seed(0)
    module = torch.nn.Linear(48, 96).requires_grad_(False)
    geometry, x, offset = geometry_of(module), torch.randn(2, 5, 48), (0, 32, 32)
    sliced, whole = patch_for(kind, (32, 48)), patch_for("loha", (96, 48), 1)
    deltas = [
        ("style", 0.8, delta_of(sliced, geometry, offset)),
        ("subject", 0.6, delta_of(whole, geometry, None)),
    ]
    out, layer = run(module, geometry, deltas, x)
    assert [(s.start, s.stop, s.shared) for s in layer.segments] == [(0, 32, False), (32, 64, True), (64, 96, False)]
    base = module.weight.double()
    change = merged(sliced, base, 0.8, offset=offset) - base
    truth = with_weight(module, merged(whole, base, 0.6) + change, x)
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)
    layer.read_weight = lambda: module.weight
    stats = layer.segment_deltas(layer.segments[1])
    torch.testing.assert_close(stats.dense("style").double(), change[32:64], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_the_input(kind):
    torch.manual_seed(0)
    module = torch.nn.Linear(96, 32).requires_grad_(False)
    geometry, x, offset = geometry_of(module), torch.randn(2, 5, 96), (1, 32, 48)
    patch = patch_for(kind, (32, 48))
    if not ROWS[kind].partial:
        with pytest.raises(Unroutable, match="a part of the weight's input channels"):
            delta_of(patch, geometry, offset)
        return
    out, layer = run(module, geometry, [("style", 0.8, delta_of(patch, geometry, offset))], x)
    wanted = merged(patch, module.weight, 0.8, offset=offset)
    torch.testing.assert_close(out.double(), with_weight(module, wanted, x), rtol=1e-5, atol=1e-5)
    change = layer.segment_deltas(layer.segments[0]).dense("style").double()
    torch.testing.assert_close(change, wanted - module.weight.double(), rtol=1e-4, atol=1e-6)


def test_what_was_measured_is_measured_once():
    calls = []
    module = torch.nn.Linear(48, 32).requires_grad_(False)
    geometry, x, memo = geometry_of(module), torch.randn(2, 5, 48), {}

    def forward(z):
        calls.append(z.shape)
        return module(z)

    layer = FusedLayer(
        "l", geometry, [("subject", 1.0, delta_of(patch_for("dora_out_lora", (32, 48)), geometry, None))]
    )
    for _ in range(3):
        layer.fuse(x, module(x), lambda *_: {}, BaseLayer(forward, geometry, memo))
    assert len(calls) == 3, "two for the weight, one for the bias"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass(kind):
    """Guidance asks for gradients of layers whose deltas were made, like all in a node, under inference mode."""
    torch.manual_seed(0)
    module = torch.nn.Conv2d(24, 32, 3, padding=1).requires_grad_(False)
    geometry, x, memo = geometry_of(module), inputs(module), {}
    with torch.inference_mode():
        tensors = KINDS[kind](Maker(0), geometry.weight_shape)
        file = {f"{PREFIX}.{name}": t for name, t in tensors.items()}
        patch = comfy.lora.load_lora(file, {PREFIX: "w"}, log_missing=False)["w"]
        delta = delta_of(patch, geometry, None)
        with torch.inference_mode(False), torch.no_grad():
            layer = FusedLayer("l", geometry, [("subject", 0.7, delta)])
        layer.fuse(x.clone(), module(x.clone()), lambda *_: {}, BaseLayer(module, geometry, memo))
    x.requires_grad_()
    out = layer.fuse(x, module(x), lambda *_: {}, BaseLayer(module, geometry, memo))
    probe = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * probe).sum(), x)
    weight = merged(patch, module.weight, 0.7, torch.float32)
    y = torch.nn.functional.conv2d(x, weight.detach().clone(), module.bias, padding=1)
    (wanted,) = torch.autograd.grad((y * probe).sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-4)
