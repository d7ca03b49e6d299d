"""A lightweight event bus on Redis Streams, for anybody's events. Knows nothing of users or databases.

The public names are imported on first use: whoever needs an entry id only does not load redis-py.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imsync.bus.bus import Bus
    from imsync.bus.connection import Endpoint
    from imsync.bus.consumer import Consumer
    from imsync.bus.event import Event, PositiveInt, SequenceNumber
    from imsync.bus.handler import (
        BoundStore,
        Deferring,
        Handler,
        LeanHandler,
        PrunedLog,
        Received,
        RedrivenLog,
        Rejected,
        SettlementLog,
    )
    from imsync.bus.options import ConsumerOptions
    from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Ack, DeadLetter, Effect, Outcome, Retry
    from imsync.bus.processor import Counts
    from imsync.bus.publisher import Publisher, PublishIncomplete
    from imsync.bus.retention import Retention
    from imsync.bus.retry import ROCKETMQ_STEPS, Backoff, RetryPolicy, Steps
    from imsync.bus.stream import Stream
    from imsync.bus.telemetry import Listener, TelemetryEvent

__all__ = [
    "APPLIED",
    "DUPLICATE",
    "ROCKETMQ_STEPS",
    "SUPERSEDED",
    "Ack",
    "Backoff",
    "BoundStore",
    "Bus",
    "Consumer",
    "ConsumerOptions",
    "Counts",
    "DeadLetter",
    "Deferring",
    "Effect",
    "Endpoint",
    "Event",
    "Handler",
    "LeanHandler",
    "Listener",
    "Outcome",
    "PositiveInt",
    "PrunedLog",
    "PublishIncomplete",
    "Publisher",
    "Received",
    "RedrivenLog",
    "Rejected",
    "Retention",
    "Retry",
    "RetryPolicy",
    "SequenceNumber",
    "SettlementLog",
    "Steps",
    "Stream",
    "TelemetryEvent",
]

_HOMES = {
    "bus": ("Bus",),
    "connection": ("Endpoint",),
    "consumer": ("Consumer",),
    "event": ("Event", "PositiveInt", "SequenceNumber"),
    "handler": (
        "BoundStore",
        "Deferring",
        "Handler",
        "LeanHandler",
        "PrunedLog",
        "Received",
        "RedrivenLog",
        "Rejected",
        "SettlementLog",
    ),
    "options": ("ConsumerOptions",),
    "outcome": ("APPLIED", "DUPLICATE", "SUPERSEDED", "Ack", "DeadLetter", "Effect", "Outcome", "Retry"),
    "processor": ("Counts",),
    "publisher": ("Publisher", "PublishIncomplete"),
    "retention": ("Retention",),
    "retry": ("ROCKETMQ_STEPS", "Backoff", "RetryPolicy", "Steps"),
    "stream": ("Stream",),
    "telemetry": ("Listener", "TelemetryEvent"),
}
"""The modules that the names are from."""

_HOME_OF = {name: f"imsync.bus.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
