"""RoutingReport: what was decided while a picture was sampled."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..host.report import record_report
from ..host.routing import record_of_latent
from .common import CATEGORY


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
                io.String.Output("report", tooltip="The same in a few lines of text."),
            ],
        )

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        record = record_of_latent(model, latent["samples"])
        plain, text = record.to_json(), record_report(record)
        return io.NodeOutput(latent, json.dumps(plain), text, ui={"routing": [plain], "text": [text]})


NODES = [RoutingReport]
