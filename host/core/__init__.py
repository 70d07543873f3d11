"""What we know of ComfyUI that is about no LoRA."""

from .errors import ConductorError
from .execution import Place, executing, sources
from .kept import Kept, Origin
from .modules import find_module, geometry_of, head_width, weight_reader
from .page import ids_of_prompt, page_of_prompt
from .progress import Progress
from .sampling import SAMPLER_NAMES, SCHEDULER_NAMES, SamplerCall, sampled
from .version import pack_version
from .words import listed

__all__ = [
    "ConductorError",
    "Kept",
    "Origin",
    "Place",
    "Progress",
    "SAMPLER_NAMES",
    "SCHEDULER_NAMES",
    "SamplerCall",
    "executing",
    "find_module",
    "geometry_of",
    "head_width",
    "ids_of_prompt",
    "listed",
    "pack_version",
    "page_of_prompt",
    "sampled",
    "sources",
    "weight_reader",
]
