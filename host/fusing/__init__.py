"""LoRAs on a ModelPatcher, fused while it samples."""

from .attach import attachment_of, set_policy, show_on
from .calibration import calibrated_by_prompts
from .loading import fused, load_loras
from .plans import fingerprint_of, plan_files, plan_of_latent, read_plan, replaying, write_plan
from .report import run_report
from .results import live_of, record_of_latent
from .spec import FusionSpec

__all__ = [
    "FusionSpec",
    "attachment_of",
    "calibrated_by_prompts",
    "fingerprint_of",
    "fused",
    "live_of",
    "load_loras",
    "plan_files",
    "plan_of_latent",
    "read_plan",
    "record_of_latent",
    "replaying",
    "run_report",
    "set_policy",
    "show_on",
    "write_plan",
]
