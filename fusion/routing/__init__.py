"""Deciding while the model runs: a spec's rules, one run's router, one call's decisions."""

from .call import Call
from .grid import Picture
from .planned import planned
from .refinement import OWN, Refinement
from .router import Router
from .rules import Prepared, Rules, prepare
from .settings import NAMED, SETTINGS, acting, heeds, name_of, with_settings

__all__ = [
    "Call",
    "NAMED",
    "OWN",
    "Picture",
    "Prepared",
    "Refinement",
    "Router",
    "Rules",
    "SETTINGS",
    "acting",
    "heeds",
    "name_of",
    "planned",
    "prepare",
    "with_settings",
]
