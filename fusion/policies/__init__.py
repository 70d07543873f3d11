"""All routing policies, by name."""

from collections.abc import Mapping
from typing import Any

from .base import Policy, ScheduledPolicy, ScoredPolicy, StaticPolicy, StepContext
from .passes import Composite, PassPolicy, Solo, Switch
from .scheduled import BlockMask, Chance, ESTLoRA, KLoRA
from .scored import Balanced, Cosine, Energy, JensenShannon, KLSoft, Paper
from .ssr import SSRMerge
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
        Composite,
        BlockMask,
        Chance,
    )
}
RECOMMENDED: Policy = Balanced()


def title(settings: Mapping[str, Any]) -> str:
    """What users call the policy with these settings: they choose ``recommended``, whichever policy it is by now."""
    return "recommended" if dict(settings) == RECOMMENDED.settings() else str(settings["policy"])


__all__ = [
    "DARE",
    "DELLA",
    "POLICIES",
    "RECOMMENDED",
    "SSRMerge",
    "SVD",
    "TIES",
    "Average",
    "Balanced",
    "BlockMask",
    "Chance",
    "Composite",
    "Cosine",
    "ESTLoRA",
    "Energy",
    "JensenShannon",
    "KLSoft",
    "KLoRA",
    "MagnitudePrune",
    "NPLoRA",
    "Paper",
    "PassPolicy",
    "Policy",
    "ScheduledPolicy",
    "ScoredPolicy",
    "Solo",
    "StaticPolicy",
    "StepContext",
    "Sum",
    "Switch",
    "title",
]
