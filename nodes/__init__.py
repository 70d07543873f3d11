"""The contract with users: one file a node, its schema and a few lines that call the library."""

from . import bake, compare, encoder_loader, loader, plan, report, router, sampler

NODES = [
    *loader.NODES,
    *router.NODES,
    *sampler.NODES,
    *encoder_loader.NODES,
    *report.NODES,
    *plan.NODES,
    *bake.NODES,
    *compare.NODES,
]
