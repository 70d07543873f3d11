"""Metric guidance: what it is asked to do, and a sampling run that is corrected towards its references."""

from .attach import REPORTS, guide, guided_guider, guided_model, guided_sampler, report_of_latent, sample
from .drawn import SOURCES, with_drawn_references
from .plan import MODES, GuidanceOptions, GuidancePlan

__all__ = [
    "MODES",
    "REPORTS",
    "SOURCES",
    "GuidanceOptions",
    "GuidancePlan",
    "guide",
    "guided_guider",
    "guided_model",
    "guided_sampler",
    "report_of_latent",
    "sample",
    "with_drawn_references",
]
