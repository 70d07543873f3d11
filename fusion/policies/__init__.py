"""All routing policies, by name."""

from .base import Policy, ScheduledPolicy, ScoredPolicy, StaticPolicy, StepContext
from .scheduled import BlockMask, Chance, ESTLoRA, KLoRA, Switch
from .scored import Balanced, Cosine, Energy, JensenShannon, KLSoft, Paper
from .static import DARE, DELLA, SVD, TIES, Average, MagnitudePrune, NPLoRA, Sum

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Sum,
        Average,
        Paper,
        KLSoft,
        JensenShannon,
        Cosine,
        Energy,
        Balanced,
        KLoRA,
        ESTLoRA,
        NPLoRA,
        TIES,
        DARE,
        DELLA,
        MagnitudePrune,
        SVD,
        Switch,
        BlockMask,
        Chance,
    )
}
RECOMMENDED: Policy = Balanced()

__all__ = [
    "DARE",
    "DELLA",
    "POLICIES",
    "RECOMMENDED",
    "SVD",
    "TIES",
    "Average",
    "Balanced",
    "BlockMask",
    "Chance",
    "Cosine",
    "ESTLoRA",
    "Energy",
    "JensenShannon",
    "KLSoft",
    "KLoRA",
    "MagnitudePrune",
    "NPLoRA",
    "Paper",
    "Policy",
    "ScheduledPolicy",
    "ScoredPolicy",
    "StaticPolicy",
    "StepContext",
    "Sum",
    "Switch",
]
