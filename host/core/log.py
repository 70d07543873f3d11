"""The one logger of the pack: ``lora_conductor``, so that users can find, filter and silence what is ours."""

from __future__ import annotations

import logging

logger = logging.getLogger("lora_conductor")
