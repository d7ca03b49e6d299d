"""Replaying pending entries: a plan that can be read first, then the same processing that a consumer does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from imsync.bus.entry import PendingEntry, following
from imsync.bus.event import Event
from imsync.bus.keys import Keys
from imsync.bus.liveness import remaining_ms
from imsync.bus.processor import Failure, Processor
from imsync.bus.stream import Stream
from imsync.bus.takeover import claim_all
from imsync.errors import GroupMissing

if TYPE_CHECKING:
    from redis import Redis

E = TypeVar("E", bound=Event)

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Planned:
    """A pending entry that would be replayed. `owner_alive`: its consumer has a heartbeat."""

    entry: PendingEntry
    owner_alive: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which pending entries to replay.

    Args:
        min_idle_ms: only those not delivered for so long, in milliseconds.
        consumer: only those of this consumer.
        ids: only these entries; all when empty.
        limit: at most so many, the oldest first; all when None.
    """

    min_idle_ms: int = 60_000
    consumer: str | None = None
    ids: Sequence[str] = ()
    limit: int | None = None


def plan(client: Redis, stream: Stream, keys: Keys, group: str, selection: Selection) -> list[Planned]:
    """The entries that a replay would take, in the order of their ids. Changes nothing."""
    chosen: list[PendingEntry] = []
    for entry in _pending(stream, group, selection):
        if selection.limit is not None and len(chosen) >= selection.limit:
            break
        chosen.append(entry)
    owners = {entry.consumer for entry in chosen}
    alive = remaining_ms(client, keys, group, sorted(owners), stream.where)
    return [Planned(entry, alive[entry.consumer] > 0) for entry in chosen]


def _pending(stream: Stream, group: str, selection: Selection) -> Iterator[PendingEntry]:
    ranges = [(entry_id, entry_id) for entry_id in selection.ids] or [("-", "+")]
    for start, end in ranges:
        while True:
            try:
                page = stream.pending(
                    group,
                    start=start,
                    end=end,
                    count=_PAGE,
                    consumer=selection.consumer,
                    min_idle_ms=selection.min_idle_ms,
                )
            except GroupMissing:
                return
            yield from page
            if len(page) < _PAGE:
                break
            start = following(page[-1].id)


def replay(
    processor: Processor[E],
    stream: Stream,
    group: str,
    consumer: str,
    planned: Sequence[Planned],
    min_idle_ms: int,
    batch: int = 1000,
) -> Iterator[list[Failure]]:
    """Claims the planned entries and applies them, batch by batch. Whatever was acknowledged or claimed by
    somebody else since the plan was made is left alone.

    Yields:
        After each batch the entries on which the handler failed; they stay pending under `consumer`.

    Raises:
        InfrastructureError: Redis or the store is in trouble; what was not acknowledged stays pending.
    """
    for start in range(0, len(planned), batch):
        ids = [each.entry.id for each in planned[start : start + batch]]
        entries = claim_all(stream, group, consumer, ids, min_idle_ms, processor.give_up)
        processor.counts.taken_over += len(entries)
        yield processor.process(entries)
