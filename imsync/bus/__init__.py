"""A lightweight event bus on Redis Streams, for anybody's events. Knows nothing of users or databases."""

from imsync.bus.bus import Bus
from imsync.bus.connection import Endpoint
from imsync.bus.consumer import Consumer
from imsync.bus.event import Event, PositiveInt, SequenceNumber
from imsync.bus.handler import BoundStore, Handler, PrunedLog, Received, Rejected, SettlementLog
from imsync.bus.options import ConsumerOptions
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Ack, DeadLetter, Effect, Outcome, Retry
from imsync.bus.processor import Counts
from imsync.bus.publisher import Publisher, PublishIncomplete
from imsync.bus.retention import Retention
from imsync.bus.retry import ROCKETMQ_STEPS, Backoff, RetryPolicy, Steps
from imsync.bus.stream import Stream

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
    "Effect",
    "Endpoint",
    "Event",
    "Handler",
    "Outcome",
    "PositiveInt",
    "PrunedLog",
    "PublishIncomplete",
    "Publisher",
    "Received",
    "Rejected",
    "Retention",
    "Retry",
    "RetryPolicy",
    "SequenceNumber",
    "SettlementLog",
    "Steps",
    "Stream",
]
