"""Files made with the real LyCORIS and PEFT, and their own forwards as a second opinion beside ComfyUI's merge."""

import comfy.lora
import pytest
import torch

from lora_conductor.fusion.adapters import BaseLayer, Geometry
from lora_conductor.fusion.layers.layer import FusedLayer
from lora_conductor.host.loras.deltas import applicable, delta_of


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.conv = torch.nn.Linear(48, 32), torch.nn.Conv2d(24, 32, 3, padding=1)
        self.requires_grad_(False)

    def forward(self, x, image):
        return self.lin(x), self.conv(image)


GEOMETRY = {"lin": Geometry(48, 32), "conv": Geometry(24, 32, (3, 3), (1, 1), (1, 1), (1, 1))}


def inputs():
    torch.manual_seed(1)
    return {"lin": torch.randn(2, 5, 48), "conv": torch.randn(2, 24, 9, 9)}


def check(net, tensors, prefix, theirs, record_property, name):
    """Core reads the file; our layers give what the library's own do."""
    key_map = {f"{prefix}{layer}": f"{layer}.weight" for layer in GEOMETRY}
    patches = comfy.lora.load_lora(tensors, key_map, log_missing=False)
    assert patches, f"no key of {list(tensors)} was read"
    for key, patch in patches.items():
        if key.endswith(".bias"):
            continue  # not routed, and left as it was
        layer_name = key.removesuffix(".weight")
        module, geometry, x = getattr(net, layer_name), GEOMETRY[layer_name], inputs()[layer_name]
        layer = FusedLayer(layer_name, geometry, [("subject", 1.0, delta_of(applicable(patch), geometry, None))])
        ours = layer.fuse(x, module(x), lambda *_: {}, BaseLayer(module, geometry, {}))
        wanted = theirs[layer_name].detach()
        with torch.no_grad():
            moved = float((wanted - module(x)).abs().max())
            error = float((ours - wanted).abs().max())
        record_property(f"{name} {layer_name} error over delta", error / moved)
        assert moved > 0.01 and error < 1e-4 * moved
    return patches


LYCORIS = {
    "lora": {"algo": "locon"},
    "lora tucker": {"algo": "locon", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr factored": {"algo": "lokr", "factor": 4, "decompose_both": True, "linear_dim": 2, "conv_dim": 2},
    "lokr whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr tucker": {"algo": "lokr", "factor": 4, "use_tucker": True, "linear_dim": 2, "conv_dim": 2},
    "full": {"algo": "full"},
    "oft": {"algo": "diag-oft"},
    "boft": {"algo": "boft"},
    "dora in lora": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "dora in loha": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "dora in lokr": {"algo": "lokr", "factor": 4, "dora_wd": True, "wd_on_output": False},
}


@pytest.mark.parametrize("name", LYCORIS)
def test_lycoris(name, record_property):
    lycoris = pytest.importorskip("lycoris")
    net = Net()
    settings = {"linear_dim": 4, "linear_alpha": 2.0, "conv_dim": 4, "conv_alpha": 2.0, **LYCORIS[name]}
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Net"], "target_name": []})
    network = lycoris.create_lycoris(net, 1.0, **settings)
    network.apply_to()
    randomise(network)
    tensors = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        theirs = dict(zip(GEOMETRY, net(*inputs().values()), strict=True))
    network.restore()
    assert tensors and any("conv" in key for key in tensors)
    check(net, tensors, "lycoris_", theirs, record_property, f"LyCORIS {name}")


PEFT = {
    "lora": lambda peft: peft.LoraConfig(r=4, lora_alpha=2, target_modules=["lin", "conv"]),
    "loha": lambda peft: peft.LoHaConfig(r=4, alpha=2, target_modules=["lin", "conv"]),
    "lokr": lambda peft: peft.LoKrConfig(r=2, alpha=2, target_modules=["lin", "conv"], decompose_both=True),
}


@pytest.mark.parametrize("name", PEFT)
def test_peft(name, record_property):
    peft = pytest.importorskip("peft")
    net = Net()
    model = peft.get_peft_model(Net(), PEFT[name](peft))
    randomise(model, only=("lora_", "hada_", "lokr_"))
    tensors = {
        # PEFT keeps alpha in its configuration; its converters write it beside the factors.
        key.removeprefix("base_model.model."): value.clone()
        for key, value in peft.get_peft_model_state_dict(model).items()
    }
    tensors |= {f"{layer}.alpha": torch.tensor(2.0) for layer in GEOMETRY}
    with torch.no_grad():
        theirs = dict(zip(GEOMETRY, model(*inputs().values()), strict=True))
    check(net, tensors, "", theirs, record_property, f"PEFT {name}")


def randomise(module, only=("",)):
    """Adapters begin as the identity: move every factor away from it."""
    torch.manual_seed(2)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if any(part in key for part in only) and "alpha" not in key and "bias" not in key and parameter.ndim:
                noise = torch.randn_like(parameter)
                if "dora_scale" in key:
                    parameter.mul_(1 + 0.2 * noise)
                elif "oft_blocks" in key:
                    parameter.copy_(0.1 * noise)
                else:
                    parameter.add_(0.3 * noise)
