"""Values that come by a link are of the type that the node's input has, or refused by its name."""

import math

import numpy
import pytest
from comfy_api.latest import io

from lora_conductor.host.core import ConductorError
from lora_conductor.nodes.inputs import typed


class Node(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Int.Input("steps"), io.Float.Input("strength"), io.Boolean.Input("on"), io.String.Input("text")]
        return io.Schema("Node", inputs=[*inputs, io.Combo.Input("menu", options=["a"]), io.Latent.Input("latent")])

    @classmethod
    @typed
    def execute(cls, **inputs):
        return inputs


FINE = {
    "steps": (0, -3, 2**64 - 1, numpy.int64(3), True),
    "strength": (0, 1.5, -7, numpy.float16(0.5), 1e300),
    "on": (True, False, 1),
    "text": ("", "x", numpy.str_("y")),
    "menu": ("b", None),
    "latent": (None, {}),
}
WRONG = {
    "steps": (None, 1.0, "3", 2**64, [3], 10**5000),
    "strength": (None, "1.0", math.nan, math.inf, 10**400, 1j, {"x": 1.0}),
    "on": (None, "true", 0.5, []),
    "text": (None, b"x", 7, ["x"]),
}


@pytest.mark.parametrize("name", FINE)
def test_what_fits_is_handed_on(name):
    for value in FINE[name]:
        assert Node.execute(**{name: value}) == {name: value}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ConductorError, match=rf"^{name}: a .* is expected, got .*Link another value"):
            Node.execute(**{name: value})


def test_every_node_with_values_checks_them():
    from lora_conductor.nodes import NODES

    kinds = (io.Int.Input, io.Float.Input, io.Boolean.Input, io.String.Input)
    with_values = [node for node in NODES if any(isinstance(part, kinds) for part in node.define_schema().inputs)]
    unchecked = [node.__name__ for node in with_values if not hasattr(node.execute, "__wrapped__")]
    assert with_values and unchecked == []
