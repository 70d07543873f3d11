"""The routing map: while it is drawn, for pages that were away, and as a picture."""

from .live import LiveMap
from .picture import block_of, routing_picture

__all__ = ["LiveMap", "block_of", "routing_picture"]
