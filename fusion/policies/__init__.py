"""Who gets a layer that both LoRAs touch: the policies, and all that users can choose, by name.

A policy is a file of this room whose class enters itself (:func:`~.registry.listed`): it is found by lying here. Those
that code builds by their class stand in ``__all__`` too.
"""

from importlib import import_module
from pkgutil import walk_packages

from .base import Policy, ScheduledPolicy, ScoredPolicy, StaticPolicy, StepContext
from .passes import Composite, PassPolicy, Solo, Switch
from .recommended import RECOMMENDED, title
from .registry import choices
from .scheduled.block_mask import BlockMask
from .scheduled.chance import Chance
from .scheduled.craft import CRAFT
from .scheduled.est_lora import ESTLoRA
from .scheduled.k_lora import KLoRA
from .scored.balanced import Balanced
from .scored.hard import Cosine, Energy, JensenShannon, Paper
from .scored.kl_soft import KLSoft
from .scores import SCORES, Score, relative_energy
from .scores_of_pairs import OF_MOVED, scores_of_moved, scores_of_pair
from .setting import Setting, setting, settings_of
from .ssr import Calibration, Moments, SSRMerge
from .static.dare import DARE
from .static.della import DELLA
from .static.knots import KnOTS
from .static.magnitude_prune import MagnitudePrune
from .static.np_lora import NPLoRA
from .static.sums import Average, Sum
from .static.svd import SVD
from .static.ties import TIES
from .static.tsv import TSV

for _file in walk_packages(__path__, f"{__name__}."):
    import_module(_file.name)

POLICIES: dict[str, type[Policy]] = choices()
"""In the order of the router's choices."""

__all__ = [
    "Average",
    "Balanced",
    "BlockMask",
    "CRAFT",
    "Calibration",
    "Chance",
    "Composite",
    "Cosine",
    "DARE",
    "DELLA",
    "ESTLoRA",
    "Energy",
    "JensenShannon",
    "KLSoft",
    "KLoRA",
    "KnOTS",
    "MagnitudePrune",
    "Moments",
    "NPLoRA",
    "OF_MOVED",
    "POLICIES",
    "Paper",
    "PassPolicy",
    "Policy",
    "RECOMMENDED",
    "SCORES",
    "SSRMerge",
    "SVD",
    "ScheduledPolicy",
    "Score",
    "ScoredPolicy",
    "Setting",
    "Solo",
    "StaticPolicy",
    "StepContext",
    "Sum",
    "Switch",
    "TIES",
    "TSV",
    "relative_energy",
    "scores_of_moved",
    "scores_of_pair",
    "setting",
    "settings_of",
    "title",
]
