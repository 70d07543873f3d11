"""LoRA files, as `DualLoRADynamicLoader` reads them: safetensors and PyTorch's own, resolved against a model."""

from __future__ import annotations

import io
import zlib
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lora_conductor.host.core import ConductorError, printable
from lora_conductor.host.fusing import load_loras
from lora_conductor.host.loras import LoraChoice

from ...host import tiny
from ...host.adapter_files import ROWS, Maker
from .. import mutations
from ..cases import Parser
from . import setting

SAMPLED = 64  # one of so many that were read
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def _tensors(kind: str, dialect: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    maker, found = Maker(0, 0.2), {}
    for key, shape in setting.shapes().items():
        prefixes = setting.dialects()[key]
        if ROWS[kind].suits(shape):
            made = ROWS[kind].make(maker, shape)
            found |= {f"{prefixes[dialect % len(prefixes)]}.{leaf}": value.to(dtype) for leaf, value in made.items()}
    return {key: value.contiguous() for key, value in found.items()}


def _odd() -> dict[str, Tensor]:
    """Text encoder, biases, norms, whole weights, and what only some programs write."""
    (prefix, *_), (other, *_), *_ = setting.dialects().values()
    text = {f"{TEXT}.lora_up.weight": torch.ones(32, 2), f"{TEXT}.lora_down.weight": torch.ones(2, 32)}
    biases = {f"{prefix}.diff": torch.zeros(32, 32), f"{prefix}.diff_b": torch.zeros(32)}
    whole = {f"{other}.set_weight": torch.zeros(32, 32), f"{other}.reshape_weight": torch.tensor([64, 32])}
    return text | biases | whole | {"other.lora_A.weight": torch.ones(2, 2), f"{other}.w_norm": torch.ones(32)}


def _tables() -> list[dict[str, Tensor]]:
    plain = [_tensors(kind, number) for number, kind in enumerate(ROWS)]
    return [
        *plain,
        _tensors("lora", 1, torch.float16),
        _tensors("lokr", 2, torch.bfloat16),
        _odd() | _tensors("lora", 3),
    ]


def _safetensors() -> list[bytes]:
    return [save(table, {"ss_network_module": "networks.lora", "format": "pt"}) for table in _tables() if table]


def _pickled(new: bool) -> list[bytes]:
    tables: list[Any] = [*_tables()[:3], _odd() | _tensors("lora")]
    tables += [{"state_dict": tables[0]}, {**tables[0], "step": 3}]
    files = []
    for table in tables:
        file = io.BytesIO()
        torch.save(table, file, _use_new_zipfile_serialization=new)
        files.append(file.getvalue())
    return files


def reader_of(name: str) -> Any:
    def read(data: bytes) -> None:
        setting.put(setting.LORAS / name, data)
        with setting.known_keys():
            model, _, report = load_loras(setting.styled(), setting.clip(), [LoraChoice(name, "subject", 0.8, 0.6)])
        setting.printed(printable(report))
        if zlib.crc32(data) % SAMPLED == 0:
            tiny.sample(model)

    return read


REFUSALS = (ConductorError,)
SAFETENSORS = Parser(
    _safetensors,
    reader_of("fuzzed.safetensors"),
    REFUSALS,
    (
        mutations.safetensors_of,
        mutations.safetensors_of,
        mutations.bytes_with(mutations.TOKENS, 1500),
        mutations.header_of(mutations.json_of),
    ),
)
PICKLES = Parser(
    lambda: _pickled(True),
    reader_of("fuzzed.pt"),
    REFUSALS,
    (mutations.zip_of, mutations.zip_of, mutations.bytes_with(mutations.PICKLED)),
)
OLD_PICKLES = Parser(
    lambda: _pickled(False), reader_of("fuzzed.ckpt"), REFUSALS, (mutations.bytes_with(mutations.PICKLED, 2500),)
)
