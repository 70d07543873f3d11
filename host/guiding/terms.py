"""A plan's similarity terms with what they compare with: embeddings of the pictures and of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import comfy.model_management
import torch

from ...guidance.losses import SimilarityTerm
from ..vision import PROMPT, RunEncoder, are_embedded, embed_references
from .plan import GuidancePlan, TermRequest


def similarity_terms(
    plan: GuidancePlan, requests: Sequence[TermRequest], encoders: Mapping[str, RunEncoder]
) -> list[SimilarityTerm]:
    """The terms that are requested, embedded.

    encoders: opened for the run; those are loaded whose embeddings are not known from an earlier run.
    """
    pictures = {role: plan.pictures(role) for role in dict.fromkeys(r.role for r in requests) if role != PROMPT}
    needed = {
        request.encoder
        for request in requests
        if request.role != PROMPT and not are_embedded(plan.encoder(request.encoder), pictures[request.role])
    }

    def reference(request: TermRequest) -> torch.Tensor:
        if request.role == PROMPT:
            return plan.embedded_prompt(request.encoder)
        source = plan.encoder(request.encoder)
        return embed_references(source, encoders[request.encoder], pictures[request.role])

    # Outside inference mode, also for loading: weights moved to the device here stay fit for gradients.
    with torch.inference_mode(False), torch.no_grad():
        comfy.model_management.load_models_gpu([encoders[name].patcher for name in needed])
        return [SimilarityTerm(r.name, r.encoder, reference(r), r.weight) for r in requests]
