"""GuidanceReferences: reference pictures with masks, several a role."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.vision import References, picture_of
from .inputs import CATEGORY, ReferencesType


class GuidanceReferences(io.ComfyNode):
    """Adds pictures to the references of metric guidance; chained, several of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceReferences",
            display_name="Guidance References",
            category=CATEGORY,
            description=(
                "Reference pictures for metric guidance and Fusion Score: several a role, of any size, each with a "
                "mask of what counts. Chain the node for more. Several pictures count on average."
            ),
            search_aliases=["reference image", "masked reference", "guidance"],
            inputs=[
                io.Image.Input("subject_image", optional=True, tooltip="Pictures of the subject, a batch or one."),
                io.Mask.Input(
                    "subject_mask",
                    optional=True,
                    tooltip="Where the subject is: the picture is cut to it and grey elsewhere.",
                ),
                io.Image.Input("style_image", optional=True, tooltip="Pictures in the style, a batch or one."),
                io.Mask.Input("style_mask", optional=True, tooltip="Which part shows the style; grey elsewhere."),
                ReferencesType.Input(
                    "references", optional=True, tooltip="References to add to, from another of these."
                ),
            ],
            outputs=[
                ReferencesType.Output("GUIDANCE_REFERENCES", tooltip="For the references input of guiding nodes.")
            ],
        )

    @classmethod
    def execute(
        cls, subject_image=None, subject_mask=None, style_image=None, style_mask=None, references=None
    ) -> io.NodeOutput:
        before = references or References()
        subject, style = before.subject, before.style
        if subject_image is not None:
            subject = (*subject, picture_of("subject_image", subject_image, subject_mask))
        if style_image is not None:
            style = (*style, picture_of("style_image", style_image, style_mask))
        return io.NodeOutput(References(subject, style))


NODES = [GuidanceReferences]
