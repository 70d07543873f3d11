"""RoutingReport: what was decided while a picture was sampled."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.core import Origin, printable
from ..host.fusing import record_or_reason, run_report
from ..host.maps import routing_picture
from .inputs import CATEGORY


class RoutingReport(io.ComfyNode):
    """Reads the routing record of the run that made a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RoutingReport",
            display_name="Routing Report",
            category=CATEGORY,
            description=(
                "Who drew what: after sampling, tells for every layer and step which LoRA was given how much. Connect "
                "the model that went into the sampler and the latent that came out of it."
            ),
            search_aliases=["lora map", "routing map", "lora report"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The same model that the sampler used."),
                io.Latent.Input("latent", tooltip="The latent that the sampler made with it."),
            ],
            outputs=[
                io.Latent.Output("LATENT", tooltip="The latent, unchanged."),
                io.String.Output("record", tooltip="Layer by step: scores and weights of both LoRAs, as JSON."),
                io.String.Output("report", tooltip="In words: files, layers, who owned which blocks, cost, seeds."),
                io.Image.Output("map", tooltip="The routing map as a picture: layers down, steps across."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        origin = Origin(cls.hidden.prompt, cls.hidden.unique_id)
        record, missing, nothing = record_or_reason(model, latent["samples"], origin)
        plain = printable(record.to_json())
        text = printable(missing or run_report(model, record, cls.hidden.prompt, cls.hidden.unique_id))
        picture = routing_picture(record)
        ui = {"routing": [plain | ({"nothing": nothing} if nothing else {})], "text": [text]}
        return io.NodeOutput(latent, json.dumps(plain), text, picture, ui=ui)


NODES = [RoutingReport]
