"""Dead letters: entries that can never be applied, kept whole with the reason, one stream per group."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from imsync.bus.clock import time_of
from imsync.bus.entry import Entry, Fields, Letter
from imsync.bus.handler import Rejected

RAW = b"raw."
"""What the original entry's field names are prefixed with."""


def letter(rejected: Rejected, entry: Entry, group: str, consumer: str, deliveries: int) -> Letter:
    """The dead letter for an entry: why, who, when, how often, and the raw bytes."""
    about = {
        "reason": rejected.outcome.reason,
        "message": rejected.outcome.message,
        "where": rejected.outcome.where,
        "group": group,
        "consumer": consumer,
        "deliveries": str(deliveries),
        "source_id": entry.id,
        "event_id": str(rejected.event.event_id) if rejected.event else "",
        "published_at": time_of(entry.id) or "",
        "dead_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    fields = {name.encode(): value.encode(errors="replace") for name, value in about.items()}
    return Letter(entry.id, fields | {RAW + name: value for name, value in entry.fields.items()})


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """A dead letter as read back. `raw` holds the original entry's fields, `where` the frames of the exception."""

    id: str
    reason: str
    message: str
    where: str
    group: str
    consumer: str
    deliveries: int
    source_id: str
    event_id: str
    published_at: str
    dead_at: str
    raw: Fields


def read(entry: Entry) -> DeadLetterRecord:
    """The dead letter in an entry of a dead-letter stream."""
    fields = entry.fields

    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode(errors="replace")

    return DeadLetterRecord(
        id=entry.id,
        reason=text("reason"),
        message=text("message"),
        where=text("where"),
        group=text("group"),
        consumer=text("consumer"),
        deliveries=int(count) if (count := text("deliveries")).isdecimal() and len(count) < 20 else 0,
        source_id=text("source_id"),
        event_id=text("event_id"),
        published_at=text("published_at"),
        dead_at=text("dead_at"),
        raw={name[len(RAW) :]: value for name, value in fields.items() if name.startswith(RAW)},
    )
