"""FusionScore: how like its references any picture is, by encoders of one's choice."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.comparing import fusion_score
from .inputs import CATEGORY, ENCODERS, ReferencesType, typed


class FusionScore(io.ComfyNode):
    """Scores images against reference pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FusionScore",
            display_name="Fusion Score",
            category=CATEGORY,
            description=(
                "How much pictures look like the subject's and the style's references, by up to three encoders. To "
                "judge metric guidance use encoders that did not guide: any guidance raises its own."
            ),
            search_aliases=["clip score", "dino score", "similarity", "compare images", "evaluate"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score."),
                io.MultiType.Input(
                    "encoder", types=ENCODERS, tooltip="From Load CLIP Vision or Metric Encoder Loader."
                ),
                io.Image.Input("subject_image", optional=True, tooltip="Pictures of the subject."),
                io.Image.Input("style_image", optional=True, tooltip="Pictures in the style."),
                ReferencesType.Input(
                    "references", optional=True, tooltip="From Guidance References; they go before the two images."
                ),
                io.MultiType.Input("encoder_2", types=ENCODERS, optional=True, tooltip="Another encoder."),
                io.MultiType.Input("encoder_3", types=ENCODERS, optional=True, tooltip="A third encoder."),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="What the pictures should show; empty leaves it out. For whole CLIP or SigLIP models from "
                    "Metric Encoder Loader, which can read it.",
                ),
                io.Image.Input(
                    "style_alone",
                    optional=True,
                    tooltip="The same seeds with the style LoRA alone, or one such picture: burn is then how many "
                    "times theirs.",
                ),
            ],
            outputs=[
                io.Float.Output("subject", tooltip="Cosine similarity to the subject, mean of pictures and encoders."),
                io.Float.Output("style", tooltip="Cosine similarity to the style, mean of pictures and encoders."),
                io.Float.Output("both", tooltip="Harmonic mean of the two: high only if both are."),
                io.String.Output("table", tooltip="Every picture by every encoder, as a Markdown table."),
                io.Float.Output(
                    "prompt", tooltip="Cosine similarity to the prompt (CLIP score), mean of pictures and encoders."
                ),
                io.String.Output(
                    "burn",
                    tooltip="Chroma, clipped pixels, contrast, edges and colourfulness of every picture, as a Markdown "
                    "table.",
                ),
            ],
        )

    @classmethod
    @typed
    def execute(
        cls,
        images,
        encoder,
        subject_image=None,
        style_image=None,
        references=None,
        encoder_2=None,
        encoder_3=None,
        prompt: str = "",
        style_alone=None,
    ) -> io.NodeOutput:
        given = {"encoder": encoder, "encoder_2": encoder_2, "encoder_3": encoder_3}
        score = fusion_score(images, given, subject_image, style_image, references, prompt, style_alone)
        shown = f"{score.table}\n\n{score.burn}"
        values = (score.subject, score.style, score.both, score.table, score.prompt, score.burn)
        return io.NodeOutput(*values, ui={"text": [shown]})


NODES = [FusionScore]
