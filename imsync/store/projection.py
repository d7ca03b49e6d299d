"""What a store must offer so that the consumer feeds it and `verify` proves it: the `Projection` protocol.

A projection follows versioned events about keys (here: users). It keeps, for each key, the version it has
applied, and the copies that it made of the content.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from imsync.bus.event import MAX_INT, Event
from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import Outcome
from imsync.store.settlement import Percentiles, Settlement

NO_ROOM = MAX_INT - 1
"""A version from which on a key could not be published and then be changed once more. No source has counted so far."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """A key as its owner has it.

    Args:
        content: every published field by its name. Empty values when deleted.
    """

    key: int
    version: int
    deleted: bool
    content: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CopyState:
    """A key as a projection has it.

    Args:
        version: the applied version; 0 when no event about this key was ever applied.
        content: the copied fields, in the projection's own order.
        rows: how many rows copy this key.
        stale_rows: how many of them differ from `content`.
        unvisited: how many of the stale rows a fan-out under way has not come to yet: it will make them right.
    """

    key: int
    version: int
    deleted: bool
    content: tuple[str, ...]
    rows: int
    stale_rows: int
    unvisited: int = 0


class Copies(Protocol):
    """What `verify` reads of a projection: of the store itself, or of an export of it."""

    @property
    def name(self) -> str:
        """The projection's name, which is its consumer group's."""
        ...

    def states(self, after: int, limit: int) -> list[CopyState]:
        """The states of at most `limit` keys above `after`, in rising order."""
        ...

    def state(self, key: int) -> CopyState | None:
        """One key's state; None when nothing is known of it and no row copies it."""
        ...

    def contents(self, key: int) -> Mapping[tuple[str, ...], int]:
        """What the rows that copy a key hold, in the order of `CopyState.content`, and how many of them hold it."""
        ...

    def expected(self, source: SourceState) -> tuple[str, ...]:
        """The content that a right copy of this source has."""
        ...

    def settled(self, event_ids: Collection[bytes]) -> Mapping[bytes, Settlement]:
        """How those of the events were settled that are and that are still remembered, by their ids (16 bytes). An
        entry of which no event is known has the id `imsync.store.settlement.key_of` gives it.
        """
        ...


class Projection(Copies, Protocol):
    """A store that follows events."""

    @property
    def events(self) -> Sequence[type[Event]]:
        """The event classes that it takes: views that declare the fields it keeps."""
        ...

    def apply(self, batch: Sequence[Received[Any]], /) -> Sequence[Outcome]:
        """See `imsync.bus.Handler`. Per key, applied versions only rise."""
        ...

    def record_dead(self, dead: Sequence[Rejected], /) -> None:
        """See `imsync.bus.SettlementLog`."""
        ...

    def record_lost(self, entry_ids: Sequence[str], /) -> None:
        """See `imsync.bus.SettlementLog`."""
        ...

    def tallies(self) -> Mapping[tuple[str, str], int]:
        """How many events were settled, by (source, outcome)."""
        ...

    def staleness(self) -> Percentiles:
        """How old edits were when their copies were brought up to date, over the last day."""
        ...

    def close(self) -> None:
        """Closes the store."""
        ...


@runtime_checkable
class FailureLog(Protocol):
    """What a projection may offer besides: which events it settled without an effect, so that an export of it can say
    why copies are behind.
    """

    def failures(self, after: bytes, limit: int) -> Sequence[tuple[bytes, Settlement]]:
        """At most `limit` events above the id `after` that became dead letters or were lost, in the order of their
        ids.
        """
        ...


@runtime_checkable
class Versioned(Protocol):
    """What a projection may offer besides: how far a key is, without a look at the rows that copy it, which may be very
    many. Otherwise it is asked for the whole `state`.
    """

    def applied(self, key: int, /) -> tuple[int, bool]:
        """The applied version of a key, 0 for none, and whether it is deleted."""
        ...


@runtime_checkable
class FanningOut(Protocol):
    """What a projection may offer besides, when it puts off the rows of a key that has very many
    (`imsync.bus.Deferring`): how far it has come.
    """

    def unvisited(self, key: int, /) -> tuple[int, int] | None:
        """How many of a key's rows are still to be visited, and of how many; None when nothing is put off."""
        ...
