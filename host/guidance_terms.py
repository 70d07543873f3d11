"""What a run compares its pictures with: the embeddings of its references, as terms of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import comfy.model_management
import torch

from ..guidance.losses import SimilarityTerm
from .encoders import RunEncoder
from .guidance_plan import GuidancePlan, TermRequest
from .guidance_references import are_embedded, embed_references
from .prompts import PROMPT


def similarity_terms(
    plan: GuidancePlan, requests: Sequence[TermRequest], encoders: Mapping[str, RunEncoder]
) -> list[SimilarityTerm]:
    """The terms that are requested, with the embeddings of their pictures or of the prompt.

    encoders: opened for the run; those are loaded whose embeddings are not known from an earlier run.
    """
    pictures = {role: plan.pictures(role) for role in dict.fromkeys(r.role for r in requests) if role != PROMPT}
    needed = {
        request.encoder
        for request in requests
        if request.role != PROMPT and not are_embedded(plan.encoder(request.encoder), pictures[request.role])
    }
    # Outside inference mode, also for loading: weights moved to the device here stay fit for gradients.
    with torch.inference_mode(False), torch.no_grad():
        comfy.model_management.load_models_gpu([encoders[name].patcher for name in needed])
        terms = []
        for request in requests:
            if request.role == PROMPT:
                reference = plan.embedded_prompt(request.encoder)
            else:
                source = plan.encoder(request.encoder)
                reference = embed_references(source, encoders[request.encoder], pictures[request.role])
            terms.append(SimilarityTerm(request.name, request.encoder, reference, request.weight))
    return terms
