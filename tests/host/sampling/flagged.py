"""One run in a ComfyUI that was started with options: ``python -m tests.host.sampling.flagged --bf16-unet``.

Prints one line of JSON: our live sum against core's stacked loaders, on the small world's FLUX-shaped model as core
loads it under these options.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]


def main() -> None:
    sys.path.insert(0, str(REPO / "tools"))
    from bootstrap_host import find_host

    sys.path.insert(0, str(find_host()))
    import comfy.options

    comfy.options.enable_args_parsing()
    from ...conftest import HOST  # makes ComfyUI's folders ours

    assert HOST
    import comfy.sd
    import folder_paths
    import torch

    from lora_conductor.fusion.policies import Sum
    from lora_conductor.host.fusing import fused

    from .. import tiny

    path = folder_paths.get_full_path_or_raise("diffusion_models", tiny.WORLD_MODEL)
    exact, model, other = tiny.world_flux(), comfy.sd.load_diffusion_model(path), comfy.sd.load_diffusion_model(path)
    with tempfile.TemporaryDirectory() as folder:
        shapes = tiny.layer_shapes(exact)
        files = [
            (tiny.make_lora(Path(folder) / f"{seed}.safetensors", shapes, seed=seed, size=0.1), strength)
            for seed, strength in ((1, 0.8), (2, -0.6))
        ]
        how = {"steps": 3, "cfg": 2.0, "batch": 4}
        truth = tiny.sample(tiny.core_stacked(exact, *files), **how).double()
        output = tiny.sample(tiny.core_stacked(other, *files), **how)
        core = output.double()
        ours = tiny.sample(fused(model, *files, Sum(), always_live=True), **how).double()

    def rms(difference: torch.Tensor) -> float:
        return float(difference.square().mean().sqrt())

    spread = float(truth.max() - truth.min())
    found = {
        "error": tiny.relative(ours, core),
        "rounding": torch.finfo(output.dtype).eps * float(core.abs().max()) / spread,
        "ours": rms(ours - truth) / spread,
        "core": rms(core - truth) / spread,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
