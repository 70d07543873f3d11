"""What we know of ComfyUI that is about no LoRA."""

from .chosen import chosen
from .errors import ConductorError
from .execution import Place, executing, sources
from .files import annotated_path, model_path
from .kept import Kept, Origin
from .log import logger
from .modules import find_module, geometry_of, head_width, stores_plainly, weight_reader
from .page import ids_of_prompt, page_of_prompt, send
from .printable import printable
from .progress import Progress
from .sampling import SAMPLER_NAMES, SCHEDULER_NAMES, SamplerCall, sampled
from .version import pack_version
from .words import listed
from .writing import place_of, write_new

__all__ = [
    "ConductorError",
    "Kept",
    "Origin",
    "Place",
    "Progress",
    "SAMPLER_NAMES",
    "SCHEDULER_NAMES",
    "SamplerCall",
    "annotated_path",
    "chosen",
    "executing",
    "find_module",
    "geometry_of",
    "head_width",
    "ids_of_prompt",
    "listed",
    "logger",
    "model_path",
    "pack_version",
    "page_of_prompt",
    "place_of",
    "printable",
    "sampled",
    "send",
    "sources",
    "stores_plainly",
    "weight_reader",
    "write_new",
]
