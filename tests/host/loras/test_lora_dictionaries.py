"""A thousand random LoRA dictionaries, most of them wrong somewhere: every key is applied or named."""

import logging

import comfy.lora
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lora_conductor.fusion.adapters import BaseLayer
from lora_conductor.host.fusing.attach import add_loras, attachment_of
from lora_conductor.host.loras.file import LoraFile
from lora_conductor.host.loras.patches import model_patches

from .. import tiny
from ..adapter_files import ROWS, Maker

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.int32]
ALPHAS = ["as is", "missing", 0.0, -1.0, float("nan"), float("inf"), "vector"]
FAULTS = ["missing", "transposed", "wider", "empty", "flat", "deeper", "scalar", "nan"]
EXTRAS = [None, None, "diff_b", "set_weight", "rescale", "dora_scale", "reshape_weight", "hm"]


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_unet()


@pytest.fixture(scope="module")
def shapes(model):
    """Layers of every geometry, and weights that belong to no projection."""
    found = tiny.layer_shapes(model)
    chosen = {}
    for key, shape in found.items():
        chosen.setdefault((len(shape), shape[2:], shape[0] == shape[1]), (key, shape))
    extra = ["diffusion_model.out.0.weight", "diffusion_model.input_blocks.1.1.norm.weight"]
    weights = model.model.state_dict()
    return dict(chosen.values()) | {key: tuple(weights[key].shape) for key in extra}


class Tensors(dict):
    """With a readable form for hypothesis."""

    def __repr__(self):
        return "\n".join(f"{k}: {str(v.dtype)[6:]} {tuple(v.shape)}" for k, v in self.items())


def wrong_shape(tensor, how):
    if how == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, 1)
    if how == "wider" and tensor.ndim:
        return torch.cat([tensor, tensor[:1]])
    if how == "empty":
        return tensor.flatten()[:0]
    if how == "flat":
        return tensor.flatten()
    if how == "deeper":
        return tensor[None]
    return tensor.flatten()[:1].reshape(())


@st.composite
def dictionaries(draw, shapes):
    tensors = Tensors()
    for n in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(shapes)))
        prefix, shape = key.removesuffix(".weight"), shapes[key]
        kind = draw(st.sampled_from(sorted(ROWS)))
        # Sometimes made for another layer.
        made_for = shape if draw(st.booleans()) else draw(st.sampled_from(list(shapes.values())))
        try:
            parts = ROWS[kind].make(Maker(n), made_for)
        except (IndexError, RuntimeError, ZeroDivisionError):
            continue  # there is no such adapter for such a weight
        healthy = draw(st.booleans())
        alpha = draw(st.sampled_from(["as is", "missing", 0.0] if healthy else ALPHAS))
        if alpha == "missing":
            parts.pop("alpha", None)
        elif alpha != "as is":
            parts["alpha"] = torch.ones(2) if alpha == "vector" else torch.tensor(alpha)
        for name in draw(st.sets(st.sampled_from(sorted(parts)), max_size=0 if healthy else 2)):
            fault = draw(st.sampled_from(FAULTS))
            if fault == "missing":
                del parts[name]
            elif fault == "nan":
                parts[name] = torch.full_like(parts[name], float("nan"))
            else:
                parts[name] = wrong_shape(parts[name], fault)
        extra = None if healthy else draw(st.sampled_from(EXTRAS))
        if extra:
            parts[extra] = torch.randn(draw(st.sampled_from([(1,), (shape[0],), (shape[0], 1), shape])))
        dtype = draw(st.sampled_from(DTYPES[:4] if healthy else DTYPES))
        for name, tensor in parts.items():
            mixed = draw(st.booleans())
            finite = bool(torch.isfinite(tensor).all())
            tensors[f"{prefix}.{name}"] = tensor.to(dtype) if mixed and (finite or dtype.is_floating_point) else tensor
    if draw(st.booleans()):
        tensors["somebody.elses.lora_up.weight"] = torch.zeros(2, 2)
    return tensors


class _Errors(logging.Handler):
    """Core logs what it could not merge, and goes on."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def core_errors(model, patches):
    handler = _Errors()
    logging.getLogger().addHandler(handler)
    try:
        weights = model.model.state_dict()
        everything = {**patches.core_patches, **{t: p for t, (p, _) in patches.merged.items()}}
        for target, patch in everything.items():
            entry = (0.5, patch, 1.0, target.offset, target.function)
            comfy.lora.calculate_weight([entry], weights[target.key].clone(), target.key)
    finally:
        logging.getLogger().removeHandler(handler)
    return handler.messages


@given(st.data())
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_each_key_is_applied_or_refused_by_name(model, shapes, data):
    tensors = data.draw(dictionaries(shapes))
    patches = model_patches(LoraFile("random", "random", "0", tensors), model)
    named = set(patches.unmatched) | patches.refused_keys
    assert patches.applied | named == set(tensors), "a key was neither applied nor named"
    assert not patches.applied & named
    assert all(patches.refused.values())
    assert bool(patches.refused_keys) == bool(patches.refused)
    assert core_errors(model, patches) == [], "core cannot apply what was taken for applicable"
    for fate in ("routed", "merged", "refused", "unmatched"):
        event(f"{fate}: {bool(getattr(patches, fate))}")
    if patches.routed or patches.merged:
        # The layers' own forwards, with one sample: torch must not be surprised.
        with torch.no_grad():
            on_model = add_loras(model, [(patches, "subject", 0.5)])
            run_layers(model, on_model)


def run_layers(model, on_model):
    spec = attachment_of(on_model).spec
    for layer in spec.layers if spec else ():
        module = model.model.get_submodule(layer.name)
        g = layer.geometry
        x = torch.randn(1, g.in_features, *[4] * len(g.kernel)) if g.is_conv else torch.randn(1, 3, g.in_features)
        out = layer.fuse(x, module(x), lambda *_: {}, BaseLayer(module, g, {}))
        assert out.shape == module(x).shape and bool(torch.isfinite(out).all())
