"""How a consumer works, and what it is called."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from imsync.bus.retention import Retention
from imsync.bus.retry import Backoff, RetryPolicy


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """How a consumer works.

    Args:
        batch: the most entries per read, and so per transaction.
        block_ms: how long a read waits for the first entry; also the longest wait before a stop is noticed.
        heartbeat_ms: time between two heartbeats.
        retry: what happens when the handler fails.
        backoff: how long to wait when Redis or the store is in trouble.
        retention: what of the stream may be trimmed, about once a minute; None trims nothing.
        until_empty: end when nothing is undelivered and nothing is held by the dead; what the living hold stays
            theirs.
        max_events: end after so many deliveries.
    """

    batch: int = 5000
    block_ms: int = 500
    heartbeat_ms: int = 1000
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    backoff: Backoff = field(default_factory=Backoff)
    retention: Retention | None = field(default_factory=Retention)
    until_empty: bool = False
    max_events: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "block_ms", "heartbeat_ms", "max_events"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


def unique_name() -> str:
    """A consumer name that no other process has or had: host, pid and randomness."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32] or "host"
    return f"{host}.{os.getpid()}.{os.urandom(3).hex()}"
