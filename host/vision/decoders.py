"""Which decoder guidance uses, and which one next when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core import ConductorError
from .previews import RgbDecoder, has_rgb_factors, preview_decoder, preview_file
from .vae import Decoder, LatentDecoder

DECODERS = ("auto", "vae", "preview", "latent RGB")
REDUCED = 0.5


def can_decode(choice: str, vae: Any, latent_format: Any) -> bool:
    """Whether pictures can be had; for "auto" the crude latent RGB factors are no replacement for a VAE.

    Raises ConductorError if the choice names a decoder that is not there.
    """
    if choice == "preview" and preview_file(latent_format) is None:
        raise ConductorError(
            f"decoder: there is no file {getattr(latent_format, 'taesd_decoder_name', None)!r} in models/vae_approx "
            "for this model. Put it there, or set decoder to auto."
        )
    if choice == "latent RGB" and not has_rgb_factors(latent_format):
        raise ConductorError("decoder: ComfyUI has no RGB factors for this model's latents. Set decoder to auto.")
    return choice in ("preview", "latent RGB") or vae is not None or preview_file(latent_format) is not None


class DecoderLadder:
    """The decoder in use, and below it cheaper ones to step down to.

    From the VAE: its activations recomputed, half the resolution, the preview decoder, RGB factors. "auto" starts at
    the preview decoder where its file is present: at a tenth of the VAE's cost its gradient serves as well.
    """

    def __init__(self, choice: str, vae: Any, latent_format: Any) -> None:
        path = preview_file(latent_format)
        self._below: list[Callable[[], Decoder]] = []
        if vae is not None and (choice == "vae" or (choice == "auto" and path is None)):
            self._below += [
                lambda: LatentDecoder(vae, latent_format),
                lambda: LatentDecoder(vae, latent_format, checkpoint_blocks=True),
                lambda: LatentDecoder(vae, latent_format, REDUCED, checkpoint_blocks=True),
            ]
        if path is not None and choice != "latent RGB":
            self._below.append(lambda: preview_decoder(path, latent_format))
        if has_rgb_factors(latent_format):
            self._below.append(lambda: RgbDecoder(latent_format))
        self.current: Decoder = self._below.pop(0)()

    def step_down(self) -> bool:
        """Replace the current decoder by the next cheaper one; False if there is none."""
        if not self._below:
            return False
        self.current.close()
        self.current = self._below.pop(0)()
        return True
