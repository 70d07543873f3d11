"""Image encoders for guidance: one interface over CLIP- and DINO-type networks of several libraries, from their files.

A library is one file here and one row of LIBRARIES in file.py.
"""

from .base import EncoderFileError, Library, TextTower, TokenizerFolders
from .description import read_json
from .file import FEATURES, LIBRARIES, METADATA_KEY, TowerEncoder, build_from_file, build_text_from_file

__all__ = [
    "FEATURES",
    "LIBRARIES",
    "METADATA_KEY",
    "EncoderFileError",
    "Library",
    "TextTower",
    "TokenizerFolders",
    "TowerEncoder",
    "build_from_file",
    "build_text_from_file",
    "read_json",
]
