"""The version gate: which events of a batch take effect. Pure, so that it can be tested to exhaustion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar


class Versioned(Protocol):
    """An event about a key, with the version of that key."""

    @property
    def id(self) -> int:
        """The key."""
        ...

    @property
    def version(self) -> int:
        """Its version."""
        ...

    @property
    def final(self) -> bool:
        """Whether nothing comes after it: a tombstone."""
        ...


V = TypeVar("V", bound=Versioned)


def newest(events: Iterable[V], applied: Mapping[int, int]) -> dict[int, V]:
    """For each key the event to apply: of those newer than what was applied the newest, or the tombstone.

    The order of the events within the batch does not matter. Of two with one version the first wins, as it would
    in two batches.

    Args:
        events: in the order of their delivery.
        applied: the version applied so far, by key; absent keys have none.
    """
    winners: dict[int, V] = {}
    for event in events:
        if event.version <= applied.get(event.id, 0):
            continue
        best = winners.get(event.id)
        if best is None or (event.final, event.version) > (best.final, best.version):
            winners[event.id] = event
    return winners
