"""Pictures in and out of networks that ComfyUI loaded, with gradients: encoders, decoders, references, prompts."""

from .autograd import StandIns, checkpointed, gradients_enabled, normal_copy, overwriting_allowed
from .decoders import DECODERS, DecoderLadder, can_decode
from .encoders import MetricEncoder, RunEncoder, load_metric_encoder, open_encoder
from .prompts import PROMPT, embed_prompt, reads_text
from .references import Picture, References, are_embedded, embed_references, picture_of, pictures_of
from .vae import Decoder, check_latent_shape, check_vae

__all__ = [
    "DECODERS",
    "PROMPT",
    "Decoder",
    "DecoderLadder",
    "MetricEncoder",
    "Picture",
    "References",
    "RunEncoder",
    "StandIns",
    "are_embedded",
    "can_decode",
    "check_latent_shape",
    "check_vae",
    "checkpointed",
    "embed_prompt",
    "embed_references",
    "gradients_enabled",
    "load_metric_encoder",
    "normal_copy",
    "open_encoder",
    "overwriting_allowed",
    "picture_of",
    "pictures_of",
    "reads_text",
]
