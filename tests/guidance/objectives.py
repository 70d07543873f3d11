"""R of an objective, written out, for tests of its gradient."""

import torch

from lora_conductor.guidance.losses import SimilarityObjective


def loss(objective: SimilarityObjective, images: torch.Tensor) -> torch.Tensor:
    """R = sum_i w_i (1 - S_i) of each image: [B, 3, H, W] in [0, 1] -> [B] (Eq. 19 of arXiv 2602.15539)."""
    similarities = objective.similarities(images)
    return sum(term.weight * (1.0 - similarities[term.name]) for term in objective.terms)
