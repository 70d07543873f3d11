"""LoRAs on a ModelPatcher, fused while it samples."""

from .attach import attachment_of, left_on, set_policy, show_on, with_roles_alone
from .calibration import calibrated_by_prompts
from .loading import fused, load_loras, trigger_words
from .order import said_of_left
from .plans import fingerprint_of, plan_files, read_plan, replaying, write_plan
from .report import run_report
from .results import distance_of_latent, live_of, plan_of_latent, record_of_latent, record_or_reason
from .spec import FusionSpec

__all__ = [
    "FusionSpec",
    "attachment_of",
    "calibrated_by_prompts",
    "distance_of_latent",
    "fingerprint_of",
    "fused",
    "left_on",
    "live_of",
    "load_loras",
    "plan_files",
    "plan_of_latent",
    "read_plan",
    "record_of_latent",
    "record_or_reason",
    "replaying",
    "run_report",
    "said_of_left",
    "set_policy",
    "show_on",
    "with_roles_alone",
    "trigger_words",
    "write_plan",
]
