"""What a consumer hands over and what it expects back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import getattr_static
from typing import Generic, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from imsync.bus.event import Event
from imsync.bus.outcome import DeadLetter, Outcome

E = TypeVar("E", bound=Event)
E_contra = TypeVar("E_contra", bound=Event, contravariant=True)
E_co = TypeVar("E_co", bound=Event, covariant=True)


class Received(NamedTuple, Generic[E_co]):
    """One delivered event.

    Args:
        event: the decoded event.
        entry_id: its id in the stream. Not the identity of the event (that is `event.event_id`): an event that
            was published twice has two.
    """

    event: E_co
    entry_id: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A delivery that becomes a dead letter. `event` is None when it could not be decoded."""

    event: Event | None
    entry_id: str
    outcome: DeadLetter


class Handler(Protocol[E_contra]):
    """Applies events. Any object with this method will do."""

    def apply(self, batch: Sequence[Received[E_contra]], /) -> Sequence[Outcome]:
        """Makes the effects of a batch durable and returns one outcome for each delivery, in the same order.

        When it returns, every `Ack` must be committed: the consumer acknowledges next. Deliveries may repeat
        and may come in any order.

        Raises:
            InfrastructureError: a server or a disk is in trouble. Nothing is acknowledged, and the batch comes
                again, however often it takes.
            StoreMismatch: the store is not the one that it was. The consumer ends, and nothing is acknowledged.
            Exception: anything else. The deliveries are then tried one by one, so that only the bad one fails.
        """
        ...


@runtime_checkable
class SettlementLog(Protocol):
    """What a handler may offer besides: it records every settled event in the transaction of its effect, so that
    repeats change nothing and the accounting closes.
    """

    def record_dead(self, dead: Sequence[Rejected], /) -> None:
        """Records that these deliveries become dead letters, durably, before they do. May repeat."""
        ...

    def record_lost(self, entry_ids: Sequence[str], /) -> None:
        """Records that these entries were trimmed before they could be applied, durably. May repeat."""
        ...


@runtime_checkable
class RedrivenLog(Protocol):
    """What a settlement log may offer besides: an entry that nobody could decode is settled by its entry id, and its
    event, once somebody could, by the event's own. Both would count.
    """

    def record_redriven(self, entry_ids: Sequence[str], /) -> None:
        """Forgets that these entries were dead because they could not be decoded: their events are settled. May repeat.

        Raises:
            InfrastructureError: the store cannot be written.
        """
        ...


@runtime_checkable
class BoundStore(Protocol):
    """What a handler with a store of its own may offer besides: what tells that this very store is the one that its
    group has fed so far, and no other, older or second one.
    """

    @property
    def store_id(self) -> str:
        """The store's identity, made with it: a UUID, in a copy the same."""
        ...

    @property
    def generation(self) -> int:
        """How many transactions that settle something were committed, by whichever process. Reads the store.

        Raises:
            InfrastructureError: the store cannot be read.
            StoreMismatch: it cannot be its group's store, such as one that is not whole.
        """
        ...


@runtime_checkable
class LeanHandler(Protocol):
    """What a handler may offer besides: it reads nothing but the fields of events, and so is given lean ones. See
    `imsync.bus.lean`.
    """

    @property
    def lean(self) -> bool:
        """Whether that is so."""
        ...


def bound_store(handler: object) -> BoundStore | None:
    """The handler, if it is a `BoundStore`. Nothing is read from it, as `isinstance` would."""
    missing = object()
    has_both = all(getattr_static(handler, name, missing) is not missing for name in ("store_id", "generation"))
    return cast(BoundStore, handler) if has_both else None


@runtime_checkable
class PrunedLog(Protocol):
    """What a settlement log may offer besides: forgetting repeats that cannot come any more."""

    def prune(self, first_id: str, /) -> int:
        """Removes settled rows of entries before the stream's first one, a few at a time; how many.

        Raises:
            InfrastructureError: the store cannot be written.
        """
        ...


@runtime_checkable
class Deferring(Protocol):
    """What a handler may offer besides: it puts off work that is too much for one transaction, and notes that in its
    store, in the transaction of the batch. What one process has put off, any other may go on with.
    """

    def go_on(self) -> bool:
        """Does the next short piece of what was put off, durably; whether there is more to go on with at once. Quick
        when there is nothing.

        Raises:
            InfrastructureError: the store is in trouble; the piece comes again.
            Exception: anything else. The consumer tells of it, and asks for the next piece.
        """
        ...
