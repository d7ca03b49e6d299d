"""What happens to delivered entries: decode → apply in one transaction → acknowledge. The one place that settles.

Nothing is acknowledged before `Handler.apply` has returned, and nothing leaves the stream for the dead letters
before the handler's settlement log knows of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from imsync.bus.codec import Decoder
from imsync.bus.dead_letter import letter
from imsync.bus.event import Event
from imsync.bus.handler import Handler, Received, Rejected, SettlementLog
from imsync.bus.outcome import Ack, DeadLetter, Effect, Outcome, Retry
from imsync.bus.retry import RetryPolicy
from imsync.bus.stream import Entry, Stream
from imsync.errors import DataError, InfrastructureError

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)


@dataclass(slots=True)
class Counts:
    """What was done so far. Each delivery is in exactly one of applied, superseded, duplicates, dead, ignored,
    lost, or in `failing`: still pending because the handler failed on it.
    """

    applied: int = 0
    superseded: int = 0
    duplicates: int = 0
    dead: int = 0
    ignored: int = 0
    lost: int = 0
    failing: int = 0
    taken_over: int = 0
    retries: int = 0
    troubles: int = 0
    left_pending: int = 0

    @property
    def events(self) -> int:
        """Deliveries that came to something. One that trouble cut short is not among them: it comes again."""
        ends = self.applied + self.superseded + self.duplicates + self.dead + self.ignored + self.lost
        return ends + self.failing

    def count(self, effect: Effect) -> None:
        """Counts an acknowledged delivery."""
        match effect:
            case Effect.APPLIED:
                self.applied += 1
            case Effect.SUPERSEDED:
                self.superseded += 1
            case Effect.DUPLICATE:
                self.duplicates += 1


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry on which the handler failed. It is still pending.

    Args:
        failures: how often it has failed, this time included.
    """

    entry: Entry
    failures: int
    error: str


class Processor(Generic[E]):
    """Settles the entries that a consumer owns.

    Args:
        stream: the stream they come from.
        dead_key: the stream of the group's dead letters.
        consumer: who owns them, for the dead letters.
        retry: when a failing event becomes a dead letter.
    """

    def __init__(
        self,
        stream: Stream,
        dead_key: str,
        *,
        group: str,
        consumer: str,
        decoder: Decoder[E],
        handler: Handler[E],
        retry: RetryPolicy,
    ) -> None:
        self.counts = Counts()
        self._stream = stream
        self._dead_key = dead_key
        self._group = group
        self._consumer = consumer
        self._decoder = decoder
        self._handler = handler
        self._retry = retry

    def process(self, entries: Sequence[Entry], failures: Mapping[str, int] | None = None) -> list[Failure]:
        """Decodes, applies and settles entries.

        Args:
            failures: how often the handler has failed before, by entry id.

        Returns:
            Those on which the handler failed and may be tried again. They stay pending.

        Raises:
            InfrastructureError: Redis or the store is in trouble. What was not acknowledged is still pending.
        """
        before = failures or {}
        received: list[Received[E]] = []
        done: list[str] = []
        dead: list[Rejected] = []
        failed: list[Failure] = []
        lost: list[str] = []
        for entry in entries:
            if not entry.fields:
                lost.append(entry.id)
                continue
            try:
                event = self._decode(entry)
            except DataError as error:
                dead.append(Rejected(None, entry.id, DeadLetter(error.reason, error.message)))
                continue
            if event is None:
                done.append(entry.id)
            else:
                received.append(Received(event, entry.id))
        by_id = {entry.id: entry for entry in entries}
        outcomes = self._apply(received)
        self.counts.ignored += len(done)
        for delivery, outcome in zip(received, outcomes, strict=True):
            attempts = before.get(delivery.entry_id, 0) + 1
            match self._retry.decide(outcome, attempts):
                case Ack(effect):
                    self.counts.count(effect)
                    done.append(delivery.entry_id)
                case Retry(cause):
                    self.counts.retries += 1
                    failed.append(Failure(by_id[delivery.entry_id], attempts, cause))
                case DeadLetter() as refusal:
                    dead.append(Rejected(delivery.event, delivery.entry_id, refusal))
        self._stream.acknowledge(self._group, done)
        self._bury(dead, by_id)
        self.give_up(lost)
        self.counts.failing += len(failed) - sum(entry.id in before for entry in entries)
        return failed

    def give_up(self, lost: Sequence[str]) -> None:
        """Acknowledges entries that were trimmed while they were pending: their events are lost here."""
        if not lost:
            return
        if isinstance(self._handler, SettlementLog):
            self._handler.record_lost(lost)
        self._stream.acknowledge(self._group, lost)
        self.counts.lost += len(lost)
        log.error(
            "%d entries of %s were trimmed while they were pending, and are lost to group %s; first %s",
            len(lost), self._stream.key, self._group, lost[0],
        )  # fmt: skip

    def _decode(self, entry: Entry) -> E | None:
        if entry.body is None:
            raise DataError("no_event_field", "the entry has no field `event`")
        return self._decoder.decode(entry.body)

    def _apply(self, received: Sequence[Received[E]]) -> Sequence[Outcome]:
        if not received:
            return []
        try:
            return _checked(self._handler.apply(received), len(received))
        except InfrastructureError:
            raise
        except Exception as error:
            if len(received) == 1:
                log.warning("the handler failed on event %s", received[0].event.event_id, exc_info=True)
                return [Retry(f"{type(error).__name__}: {error}")]
        # one bad event must not fail its batch
        return [outcome for delivery in received for outcome in self._apply([delivery])]

    def _bury(self, dead: Sequence[Rejected], by_id: Mapping[str, Entry]) -> None:
        if not dead:
            return
        if isinstance(self._handler, SettlementLog):
            self._handler.record_dead(dead)
        held = self._stream.pending_among(self._group, [rejected.entry_id for rejected in dead])
        deliveries = {entry.id: entry.deliveries for entry in held}
        letters = [
            letter(each, by_id[each.entry_id], self._group, self._consumer, deliveries.get(each.entry_id, 0))
            for each in dead
        ]
        self._stream.bury(self._group, self._dead_key, letters)
        self.counts.dead += len(dead)
        by_reason = {each.outcome.reason: each for each in reversed(dead)}
        for reason, first in by_reason.items():
            number = sum(each.outcome.reason == reason for each in dead)
            log.error(
                "%d dead letters of group %s: %s; first entry %s: %s",
                number, self._group, reason, first.entry_id, first.outcome.message,
            )  # fmt: skip


def _checked(outcomes: Sequence[Outcome], expected: int) -> Sequence[Outcome]:
    """What a handler returned, if it keeps the contract: a wrong answer must not leave entries unsettled."""
    if len(outcomes) != expected:
        raise TypeError(f"the handler returned {len(outcomes)} outcomes for {expected} deliveries")
    for outcome in outcomes:
        if not isinstance(outcome, Ack | Retry | DeadLetter):
            raise TypeError(f"the handler returned {type(outcome).__name__} and not Ack, Retry or DeadLetter")
    return outcomes
