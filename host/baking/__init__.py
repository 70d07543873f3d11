"""Baking: what the routing made of several LoRAs, written as one ordinary LoRA file.

``fused`` says which deltas there are and how they become one, ``merged`` adds what core merges beside them, ``names``
says under which keys, ``file`` holds and writes the tensors, ``header`` says what they are, ``bake`` does it all.
"""

from .bake import BakeSettings, bake, bake_to_file
from .file import BakedFile, BakedTensors

__all__ = ["BakeSettings", "BakedFile", "BakedTensors", "bake", "bake_to_file"]
