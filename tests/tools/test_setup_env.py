"""The decisions of the set-up script; that it works as a whole is shown by the tests running at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import setup_env


def test_torch_is_taken_out_of_the_host_requirements() -> None:
    text = "torch\ntorchsde\ntorchvision\nTorchAudio>=2\ntorch-pitch-shift\nnumpy>=1.25.0\n# torch is above\n"
    assert setup_env.host_requirements(text).split("\n") == [
        "torchsde",
        "torch-pitch-shift",
        "numpy>=1.25.0",
        "# torch is above",
        "",
    ]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (["filelock", "sympy>=1.13.3"], False),
        (["filelock", "nvidia-cudnn-cu13==9.1; platform_system == 'Linux'"], True),
        (["triton==3.5.0; platform_system == 'Linux'"], True),
        (["cuda-toolkit[cublas]==13.0; platform_system == 'Linux'"], True),
    ],
)
def test_recognises_a_cuda_build(needs: list[str], expected: bool) -> None:
    assert setup_env.wants_cuda(needs) is expected


@pytest.mark.parametrize(("gpu", "cuda", "index"), [(True, True, False), (False, True, True), (False, False, False)])
def test_cpu_index_only_where_it_saves_a_cuda_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool, cuda: bool, index: bool
) -> None:
    def dry_run(*arguments: str) -> None:
        needs = '["nvidia-nccl-cu13==2"]' if cuda else "[]"
        Path(arguments[arguments.index("--report") + 1]).write_text(
            f'{{"install": [{{"metadata": {{"requires_dist": {needs}}}}}]}}'
        )

    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    monkeypatch.setattr(setup_env.sys, "platform", "linux")
    monkeypatch.setattr(setup_env, "VENV", tmp_path)
    monkeypatch.setattr(setup_env, "has_gpu", lambda: gpu)
    monkeypatch.setattr(setup_env, "pip", dry_run)
    assert setup_env.torch_index() == (["--index-url", setup_env.TORCH_CPU_INDEX] if index else [])


def test_failing_pip_shows_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup_env, "LOG", tmp_path / "pip.log")
    monkeypatch.setattr(setup_env, "PYTHON", Path(setup_env.sys.executable))
    with pytest.raises(setup_env.SetupError, match="(?s)Invalid requirement.*pip failed"):
        setup_env.pip("install", "--dry-run", "=not a requirement=")
