"""SaveRoutingPlan and LoadRoutingPlan: decisions of one run, for the next."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.core import Origin, printable
from ..host.fusing import fingerprint_of, plan_files, plan_of_latent, read_plan, write_plan
from .inputs import CATEGORY, RoutingPlan, typed


class SaveRoutingPlan(io.ComfyNode):
    """Keeps what was decided while a picture was sampled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveRoutingPlan",
            display_name="Save Routing Plan",
            category=CATEGORY,
            description=(
                "Saves who got what in every layer and step of a run as a small JSON file. Given to KLLayerRouter, it "
                "makes the same picture again without measuring anything, or does the same with another prompt."
            ),
            search_aliases=["lora plan", "routing json"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The same model that the sampler used."),
                io.Latent.Input("latent", tooltip="The latent that the sampler made with it."),
                io.String.Input(
                    "filename_prefix",
                    default="routing_plans/plan",
                    tooltip="Where in ComfyUI's output folder the file goes; a number is added.",
                ),
            ],
            outputs=[
                RoutingPlan.Output("plan", tooltip="The plan, for KLLayerRouter."),
                io.String.Output("file", tooltip="Where it was saved."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    @typed
    def execute(cls, model, latent, filename_prefix: str) -> io.NodeOutput:
        plan = plan_of_latent(model, latent["samples"], Origin(cls.hidden.prompt, cls.hidden.unique_id))
        path = write_plan(plan, filename_prefix)
        said = printable(f"{len(plan.calls)} decided calls saved as {path}")
        return io.NodeOutput(plan, path, ui={"text": [said]})


class LoadRoutingPlan(io.ComfyNode):
    """Reads a saved plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadRoutingPlan",
            display_name="Load Routing Plan",
            category=CATEGORY,
            description="Reads a routing plan that SaveRoutingPlan wrote, for KLLayerRouter.",
            search_aliases=["lora plan", "routing json"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=plan_files(),
                    tooltip="Plans in ComfyUI's output folder (routing_plans) and in its input folder.",
                ),
            ],
            outputs=[RoutingPlan.Output("plan", tooltip="The plan, for KLLayerRouter.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None):
        return fingerprint_of(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(read_plan(file))


NODES = [SaveRoutingPlan, LoadRoutingPlan]
