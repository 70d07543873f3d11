"""What is fuzzed: every parser of ours that reads what others wrote, with good input to begin from."""

from .axes import AXES
from .baked import HEADERS, PARENTS
from .encoders import CSDS, FILES_ALONE, FOLDERS
from .inputs import INPUTS
from .loras import OLD_PICKLES, PICKLES, SAFETENSORS
from .notes import ABOUT, NOTES
from .plans import PLANS
from .prefixes import PREFIXES
from .prompts import PROMPTS
from .stacks import STACKS

PARSERS = {
    "plans": PLANS,
    "loras": SAFETENSORS,
    "pickled": PICKLES,
    "pickled_old": OLD_PICKLES,
    "parents": PARENTS,
    "headers": HEADERS,
    "encoders": FILES_ALONE,
    "folders": FOLDERS,
    "csd": CSDS,
    "stacks": STACKS,
    "axes": AXES,
    "prefixes": PREFIXES,
    "prompts": PROMPTS,
    "inputs": INPUTS,
    "about": ABOUT,
    "notes": NOTES,
}
