"""What we know of ComfyUI that is about no LoRA."""

from .attention import attention_parts
from .base_models import base_called, base_of
from .chosen import chosen
from .errors import ConductorError, unreadable
from .execution import Place, executing, inputs_of, sources
from .family import blocks_of, family_of
from .files import annotated_path, model_path
from .kept import Kept, Origin
from .log import logger
from .modules import find_module, geometry_of, restore_modules, stores_plainly, weight_reader
from .page import say_on_node
from .printable import printable, quoted
from .progress import Progress
from .sampling import SAMPLER_NAMES, SCHEDULER_NAMES, SamplerCall, sampled, schedule_of
from .tokens import picture_of, sees_text
from .told import Story, answer_pages, routes_and_web
from .version import pack_version
from .words import listed
from .writing import place_of, write_for_now, write_new

__all__ = [
    "base_called",
    "base_of",
    "ConductorError",
    "Kept",
    "Origin",
    "Place",
    "Progress",
    "SAMPLER_NAMES",
    "SCHEDULER_NAMES",
    "SamplerCall",
    "Story",
    "annotated_path",
    "answer_pages",
    "routes_and_web",
    "attention_parts",
    "blocks_of",
    "chosen",
    "executing",
    "family_of",
    "find_module",
    "geometry_of",
    "inputs_of",
    "listed",
    "logger",
    "model_path",
    "pack_version",
    "picture_of",
    "place_of",
    "printable",
    "quoted",
    "restore_modules",
    "sampled",
    "say_on_node",
    "schedule_of",
    "sees_text",
    "sources",
    "stores_plainly",
    "unreadable",
    "weight_reader",
    "write_for_now",
    "write_new",
]
