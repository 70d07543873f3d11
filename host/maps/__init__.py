"""The routing map: while it is drawn, and as a picture."""

from .live import LiveMap, nothing_routed
from .picture import block_of, routing_picture

__all__ = ["LiveMap", "block_of", "nothing_routed", "routing_picture"]
