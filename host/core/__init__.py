"""What we know of ComfyUI that is about no LoRA."""

from .chosen import chosen
from .errors import ConductorError, unreadable
from .execution import Place, executing, inputs_of, sources
from .files import annotated_path, model_path
from .kept import Kept, Origin
from .log import logger
from .modules import find_module, geometry_of, head_width, restore_modules, weight_reader
from .page import ids_of_prompt, page_of_prompt, say_on_node, send
from .printable import printable, quoted
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
    "inputs_of",
    "listed",
    "logger",
    "model_path",
    "pack_version",
    "page_of_prompt",
    "place_of",
    "printable",
    "quoted",
    "restore_modules",
    "sampled",
    "say_on_node",
    "send",
    "sources",
    "unreadable",
    "weight_reader",
    "write_new",
]
