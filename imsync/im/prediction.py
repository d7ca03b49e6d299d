"""What would become of entries if a projection were given them now. Reads the projection, changes nothing.

It plays what `Projection.apply` does: batch by batch, repeats first, then the version gate. So it is right as long as
nobody else writes meanwhile, the batches are those of the real run, and the handler does not fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from imsync.bus.codec import Decoder
from imsync.bus.entry import Entry
from imsync.bus.event import MAX_INT, Event
from imsync.errors import DataError
from imsync.im.gate import newest
from imsync.store.projection import Projection, Versioned
from imsync.store.settlement import DEAD


class Predicted(StrEnum):
    """What would become of an entry."""

    APPLIED = "applied"
    """It would take effect."""
    SUPERSEDED = "superseded"
    """A newer version is applied already, or comes with the same batch."""
    DUPLICATE = "duplicate"
    """This very event is settled already."""
    BAD = "bad"
    """It is no event that the projection declares."""
    LOST = "lost"
    """The stream does not hold it any more: for those who look there to say."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What would become of one entry.

    Args:
        event: what was decoded; None when that failed.
        reason, message: of a bad one, why, as the decoder says it.
        applied_version: the version that the projection has of the event's key so far, or would have by then; 0 for
            none and for bad ones.
    """

    outcome: Predicted
    event: Any = None
    reason: str = ""
    message: str = ""
    applied_version: int = 0

    def about(self, key: int) -> bool:
        """Whether it is an event about this key."""
        event: Any = self.event
        return event is not None and bool(event.id == key)

    def outline(self) -> Prediction:
        """The same without the event."""
        return replace(self, event=None)


class Predictor:
    """Plays batches of entries against a projection, one after the other: what the first would change, the next ones
    find. Memory grows with the number of different keys and events that were played.

    Args:
        decoder: of the projection's events, where there is one already; to make one takes as long as a prediction.
    """

    def __init__(self, projection: Projection, decoder: Decoder[Event] | None = None) -> None:
        self._projection = projection
        self._decoder: Decoder[Event] = decoder or Decoder(projection.events)
        self._gates: dict[int, int] = {}
        self._versions: dict[int, int] = {}
        self._settled: set[bytes] = set()

    def predict(self, batch: Sequence[Entry]) -> list[Prediction]:
        """What would become of the entries of one batch.

        Raises:
            StoreUnusable: the projection cannot be read.
        """
        return self._play([self._read(entry) for entry in batch])

    def predict_about(self, key: int, batch: Sequence[Entry]) -> list[Prediction]:
        """What would become of those events of a batch that are about one key, if only they were given."""
        return self._play([each for each in map(self._read, batch) if each.about(key)])

    def version(self, key: int) -> int:
        """The version that the projection has of a key, or would have after what was played; 0 for none."""
        self._gate(key)
        return self._versions[key]

    def supersedes(self, key: int, version: int) -> bool:
        """Whether nothing of this version can take effect any more: the key has it, or a newer one, or a tombstone."""
        return version <= self._gate(key)

    def _read(self, entry: Entry) -> Prediction:
        try:
            return Prediction(Predicted.APPLIED, self._decoder.read(entry))
        except DataError as error:
            return Prediction(Predicted.BAD, None, error.reason, error.message)

    def _play(self, found: Sequence[Prediction]) -> list[Prediction]:
        events: list[Any] = [each.event for each in found if each.event is not None]
        ids = {event.event_id.bytes for event in events}
        known = self._projection.settled(ids - self._settled)
        self._settled.update(each for each, how in known.items() if how.outcome != DEAD)
        fresh: dict[bytes, Any] = {}  # of a repeat within the batch the first counts
        for event in events:
            if event.event_id.bytes not in self._settled:
                fresh.setdefault(event.event_id.bytes, event)
        winners: dict[int, Any] = newest(
            fresh.values(), {user: self._gate(user) for user in {event.id for event in events}}
        )
        predictions = [each if each.event is None else self._judged(each.event, fresh, winners) for each in found]
        self._settled |= fresh.keys()
        for winner in winners.values():
            self._gates[winner.id] = MAX_INT if winner.final else winner.version
            self._versions[winner.id] = winner.version
        return predictions

    def _judged(self, event: Any, fresh: dict[bytes, Any], winners: dict[int, Any]) -> Prediction:
        applied_version = self._versions[event.id]
        first, winner = fresh.get(event.event_id.bytes), winners.get(event.id)
        if first is not event:
            outcome = Predicted.DUPLICATE
        else:
            outcome = Predicted.APPLIED if winner is event else Predicted.SUPERSEDED
        return Prediction(outcome, event, applied_version=applied_version)

    def _gate(self, key: int) -> int:
        """The version up to which nothing takes effect: the applied one; any, after a tombstone."""
        if key not in self._gates:
            version, is_deleted = self._applied(key)
            self._versions[key] = version
            self._gates[key] = MAX_INT if is_deleted else version
        return self._gates[key]

    def _applied(self, key: int) -> tuple[int, bool]:
        if isinstance(self._projection, Versioned):
            return self._projection.applied(key)
        state = self._projection.state(key)
        return (state.version, state.deleted) if state else (0, False)
