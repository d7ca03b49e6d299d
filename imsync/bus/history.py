"""Applying once more what a stream still holds, without moving its group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from imsync.bus.binding import Binding
from imsync.bus.entry import Entry, following
from imsync.bus.event import Event
from imsync.bus.handler import Handler, Received
from imsync.bus.outcome import Ack
from imsync.bus.processor import apply_apart
from imsync.bus.stream import Stream

E = TypeVar("E", bound=Event)


def pages(stream: Stream, start: str, end: str, size: int) -> Iterator[list[Entry]]:
    """The entries between two ids, both included, at most `size` at once."""
    while page := stream.range(start, end, count=size):
        yield page
        if len(page) < size:
            return
        start = following(page[-1].id)


def reapply(handler: Handler[E], received: Sequence[Received[E]], binding: Binding | None = None) -> Counter[str]:
    """Gives a batch to a handler outside of its group: nothing is acknowledged, and nothing is buried.

    Returns:
        How many there were of each effect; `failed` are those that the handler did not take.

    Raises:
        InfrastructureError: Redis or the store is in trouble; nothing is known of the batch.
        StoreMismatch: the store is not the group's any more.
    """
    outcomes = apply_apart(handler, received)
    if received and binding:
        binding.note()
    return Counter(str(outcome.effect) if isinstance(outcome, Ack) else "failed" for outcome in outcomes)
