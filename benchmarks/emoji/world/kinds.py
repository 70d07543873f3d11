"""The small worlds: which model, how it is sampled, and on which model its LoRAs were trained."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from . import files


@dataclass(frozen=True)
class Kind:
    """A model of the small world with all that goes with it. Pictures, splits, tokens and judge are the same in all.

    Attributes:
        name: as commands take it.
        model: its file.
        cfg: scale of classifier-free guidance.
        guidance: scale that is an input of the model (ComfyUI's *FluxGuidance*); None: it has no such input.
        steps: numbers of Euler steps it is measured at, the usual one first.
        loras: which model its LoRA files were trained on, as of `files.lora`.
        tokens: the file of the tokens that it is prompted with.
        predicts: what it learned, as of `objectives.OBJECTIVES`.
    """

    name: str
    model: str
    cfg: float
    guidance: float | None = None
    steps: tuple[int, ...] = (16,)
    loras: str = ""
    tokens: str = files.TOKENS
    predicts: str = "flow"

    def sampling(self, steps: int) -> str:
        """How pictures are made, in words."""
        embedded = "" if self.guidance is None else f", embedded guidance {self.guidance:g}"
        return f"{steps} Euler steps, CFG {self.cfg:g}{embedded}"

    @property
    def suffix(self) -> str:
        """Of the pages about it: none for the base."""
        return "" if self is BASE else f"-{self.name}"


BASE = Kind("base", files.MODEL, cfg=2.5)
DISTILLED = Kind("distilled", files.DISTILLED, cfg=1.0, guidance=2.5, steps=(16, 8, 4))
"""With the base's LoRAs, as users of distilled models do."""
DISTILLED_OWN = Kind("distilled-own", files.DISTILLED, cfg=1.0, guidance=2.5, steps=(16, 8, 4), loras="distilled")
"""The same with LoRAs that were trained on the distilled model itself."""
UNET = Kind("unet", files.UNET, cfg=6.0, steps=(20,), loras="unet", tokens=files.UNET_TOKENS, predicts="noise")
"""Of Stable Diffusion's make, with LoRAs of its own, of convolutions too."""
KINDS = {kind.name: kind for kind in (BASE, DISTILLED, DISTILLED_OWN, UNET)}


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--world-kind``: a `Kind` of KINDS, the base if it is not given."""
    parser.add_argument(
        "--world-kind",
        dest="kind",
        type=lambda name: KINDS[name] if name in KINDS else parser.error(f"--world-kind is one of {', '.join(KINDS)}"),
        default=BASE,
        metavar="{" + ",".join(KINDS) + "}",
        help="which small world; default: base",
    )
