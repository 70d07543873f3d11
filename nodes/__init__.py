"""The contract with users: one file a node, its schema and a few lines that call the library."""

from . import (
    bake,
    compare,
    encoder_loader,
    guidance,
    loader,
    measure,
    plan,
    references,
    report,
    router,
    sampler,
    score,
)

NODES = [
    *loader.NODES,
    *router.NODES,
    *sampler.NODES,
    *encoder_loader.NODES,
    *report.NODES,
    *plan.NODES,
    *bake.NODES,
    *guidance.NODES,
    *references.NODES,
    *score.NODES,
    *compare.NODES,
    *measure.NODES,
]
