"""imsync keeps denormalised copies of user profiles in step over Redis Streams, and proves that they are.

The public names are here; they are imported on first use, so that `import imsync` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imsync.bus import Ack, Bus, DeadLetter, Event, Received, Retry
    from imsync.errors import ImsyncError, InfrastructureError

__version__ = "0.1.0"

__all__ = [
    "Ack",
    "Bus",
    "DeadLetter",
    "Event",
    "ImsyncError",
    "InfrastructureError",
    "Received",
    "Retry",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        home = "imsync.errors" if name in ("ImsyncError", "InfrastructureError") else "imsync.bus"
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
