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
    applied_to, winner_of = applied.get, winners.get
    for event in events:
        key, version = event.id, event.version
        if version <= applied_to(key, 0):
            continue
        best = winner_of(key)
        if best is None or (event.final, version) > (best.final, best.version):
            winners[key] = event
    return winners
