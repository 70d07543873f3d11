"""ComparePolicies: which way of fusing suits these LoRAs, at one press."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..fusion.routing import NAMED
from ..host.comparing import Axis, Judge, axis, best_of, compare, comparison_picture
from ..host.core import SamplerCall, chosen
from .inputs import CATEGORY, RoutingPlan, encoder_inputs, policy_input, sampling_inputs, settings_inputs, typed

SAMPLING = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")


def comparable() -> dict[str, io.Input]:
    """The inputs of this node and of KLLayerRouter whose values can be compared, by name."""
    sampling = sampling_inputs()
    inputs = [policy_input(list(NAMED)), *(sampling[name] for name in SAMPLING), *settings_inputs()]
    return {part.id: part for part in inputs}


class ComparePolicies(io.ComfyNode):
    """Samples the same prompt by several policies and seeds, or values of other settings; shows and scores them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sampling = sampling_inputs()
        return io.Schema(
            node_id="ComparePolicies",
            display_name="Compare Policies",
            category=CATEGORY,
            description=(
                "Samples the same picture by several policies and seeds, or values of any two settings, and lays the "
                "results side by side, with scores under each. Give the plan of the best one to KLLayerRouter, or set "
                "what won."
            ),
            search_aliases=["xy plot", "lora grid", "compare loras", "policy grid"],
            inputs=[
                io.Model.Input("model", tooltip="A model with the LoRAs of DualLoRADynamicLoader."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                *(sampling[name] for name in ("positive", "negative", "latent_image")),
                io.String.Input(
                    "policies",
                    default="sum, paper, recommended",
                    tooltip="Names of KLLayerRouter's policies, separated by commas: one row of pictures each.",
                ),
                sampling["seed"],
                io.Int.Input(
                    "seeds",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many seeds, counted up from the first: one column of pictures each.",
                ),
                *(sampling[name] for name in SAMPLING if name != "seed"),
                *_judging_inputs(),
                *_axis_inputs(),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="Rows down, columns across; the best cell is framed."),
                io.String.Output("scores", tooltip="JSON: similarities and subject's share of every cell."),
                RoutingPlan.Output("plan", tooltip="The plan of the best cell, for KLLayerRouter."),
            ],
        )

    @classmethod
    @typed
    def execute(
        cls,
        model,
        vae,
        positive,
        negative,
        latent_image: dict,
        policies: str,
        seed: int,
        seeds: int,
        subject_image=None,
        style_image=None,
        clip_encoder=None,
        dino_encoder=None,
        rows: str = "policy",
        row_values: str = "",
        columns: str = "seed",
        column_values: str = "",
        **sampling,
    ) -> io.NodeOutput:
        own = {"policy": ("policies", policies), "seed": ("seeds", ", ".join(map(str, range(seed, seed + seeds))))}
        row_axis = _axis("rows", rows, "row_values", "" if rows == "policy" else row_values, own)
        column_axis = _axis("columns", columns, "column_values", "" if columns == "seed" else column_values, own)
        judge = Judge({"subject": subject_image, "style": style_image}, clip_encoder, dino_encoder)
        call = SamplerCall(seed=seed, positive=positive, negative=negative, latent_image=latent_image, **sampling)
        cells = compare(model, row_axis, column_axis, call, vae, judge)
        best = best_of(cells)
        table = [
            {
                "policy": cell.policy,
                "seed": cell.seed,
                "scores": cell.scores,
                "subject_share": cell.share,
                "best": cell is best,
                "row": {cell.row.name: cell.row.value},
                "column": {cell.column.name: cell.column.value},
                **({"error": cell.error} if cell.error else {}),
            }
            for cell in cells
        ]
        return io.NodeOutput(comparison_picture(cells, best), json.dumps(table), best.plan)


def _axis(field: str, name: str, values_field: str, values: str, own: dict[str, tuple[str, str]]) -> Axis:
    """What a side of the grid shows; ``own`` are the lists that the node has inputs for, used where none is written."""
    wanted = comparable()[chosen(name, comparable(), field)]
    if name in own and not values.strip():
        values_field, values = own[name]
    return axis(field, values, values_field, wanted)


def _judging_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "subject_image", optional=True, tooltip="Picture of the subject: each cell is compared with it."
        ),
        io.Image.Input("style_image", optional=True, tooltip="Picture in the style: each cell is compared with it."),
        *encoder_inputs(),
    ]


def _axis_inputs() -> list[io.Input]:
    """Optional and last: workflows saved without them keep working."""
    choices = list(comparable())
    return [
        io.Combo.Input(
            "rows",
            options=choices,
            default="policy",
            optional=True,
            tooltip="What changes from row to row: the policies above, or any setting of sampling or of KLLayerRouter. "
            "What is on neither side is as set here and in the model's router.",
        ),
        io.String.Input(
            "row_values",
            default="",
            optional=True,
            tooltip="The values of the rows, separated by commas, such as 1, 2.5 for cfg. Not used for policy, whose "
            "values are the policies above.",
        ),
        io.Combo.Input(
            "columns",
            options=choices,
            default="seed",
            optional=True,
            tooltip="What changes from column to column: the seeds above, or any other setting than that of the rows.",
        ),
        io.String.Input(
            "column_values",
            default="",
            optional=True,
            tooltip="The values of the columns, separated by commas. Not used for seed, which counts up as above.",
        ),
    ]


NODES = [ComparePolicies]
