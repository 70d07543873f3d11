"""torchvision and torchaudio beside this machine's torch, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torchvision_shim

TOOLS = Path(torchvision_shim.__file__).parent


def run(code: str, cwd: Path = TOOLS) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_installing_imports_no_torch() -> None:
    run("import sys, torchvision_shim as s; s.install(); s.install(); assert 'torch' not in sys.modules")


def test_both_import_and_work() -> None:
    run(
        """
import torchvision_shim; torchvision_shim.install()
import torch, torchaudio, torchvision
from torchvision.transforms.functional import resize
assert resize(torch.rand(3, 8, 8), [4, 4]).shape == (3, 4, 4)
assert torchaudio.functional.resample(torch.rand(1, 400), 400, 200).shape == (1, 200)
"""
    )


def test_a_package_whose_extension_loads_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    run(
        f"""
import sys; sys.path.append({str(TOOLS)!r})
import torchvision_shim; torchvision_shim.install()
import torchvision
assert torchvision.__file__.startswith({str(tmp_path)!r})
assert not torchvision_shim._kept_alive
""",
        cwd=tmp_path,
    )
