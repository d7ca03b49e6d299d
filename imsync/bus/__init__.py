"""A lightweight event bus on Redis Streams, for anybody's events. Knows nothing of users or databases."""

from imsync.bus.bus import Bus
from imsync.bus.connection import Endpoint
from imsync.bus.consumer import Consumer, ConsumerOptions
from imsync.bus.event import Event, PositiveInt, SequenceNumber
from imsync.bus.handler import Handler, Received, Rejected, SettlementLog
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Ack, DeadLetter, Effect, Outcome, Retry
from imsync.bus.processor import Counts
from imsync.bus.publisher import Publisher, PublishIncomplete
from imsync.bus.retry import Backoff, RetryPolicy
from imsync.bus.stream import Stream

__all__ = [
    "APPLIED",
    "DUPLICATE",
    "SUPERSEDED",
    "Ack",
    "Backoff",
    "Bus",
    "Consumer",
    "ConsumerOptions",
    "Counts",
    "DeadLetter",
    "Effect",
    "Endpoint",
    "Event",
    "Handler",
    "Outcome",
    "PositiveInt",
    "PublishIncomplete",
    "Publisher",
    "Received",
    "Rejected",
    "Retry",
    "RetryPolicy",
    "SequenceNumber",
    "SettlementLog",
    "Stream",
]
