"""What happens to delivered entries: decode → apply in one transaction → acknowledge. The one place that settles.

Nothing is acknowledged before `Handler.apply` has returned, and nothing leaves the stream for the dead letters
before the handler's settlement log knows of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from imsync.bus.acknowledgement import Acknowledgement
from imsync.bus.attempts import Attempts
from imsync.bus.binding import Binding
from imsync.bus.codec import Decoder
from imsync.bus.dead_letter import letter
from imsync.bus.entry import Entry
from imsync.bus.event import Event
from imsync.bus.handler import Handler, Received, Rejected, SettlementLog
from imsync.bus.logfields import Fields
from imsync.bus.outcome import Ack, DeadLetter, Effect, Outcome, Retry
from imsync.bus.retry import RetryPolicy
from imsync.bus.stopwatch import Stopwatch
from imsync.bus.stream import Stream
from imsync.bus.telemetry import DeadLettered, Lost, Telemetry
from imsync.errors import DataError, InfrastructureError, StoreMismatch

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

    def count(self, effect: Effect, number: int) -> None:
        """Counts deliveries that are applied, once each: trouble may bring them again before they are acknowledged."""
        match effect:
            case Effect.APPLIED:
                self.applied += number
            case Effect.SUPERSEDED:
                self.superseded += number
            case Effect.DUPLICATE:
                self.duplicates += number


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry on which the handler failed. It is still pending.

    Args:
        failures: how often it has failed, this time included.
        error, where: see `Retry`.
    """

    entry: Entry
    failures: int
    error: str
    where: str


@dataclass(slots=True)
class _Batch(Generic[E]):
    """Entries by what they turned out to be: events, or ids of entries to ignore, to bury, to give up."""

    entries: Sequence[Entry]
    received: list[Received[E]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    dead: list[Rejected] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class Processor(Generic[E]):
    """Settles the entries that a consumer owns.

    Args:
        stream: the stream they come from.
        dead_key: the stream of the group's dead letters.
        consumer: who owns them, for the dead letters.
        retry: when a failing event becomes a dead letter.
        attempts: the group's records of failures.
        binding: the handler's store and its group, when it has one: noted with every acknowledgement.
        telemetry: who is told of batches, dead letters and losses.
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
        attempts: Attempts,
        binding: Binding | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.counts = Counts()
        self._stream = stream
        self._dead_key = dead_key
        self._group = group
        self._consumer = consumer
        self._decoder = decoder
        self._handler = handler
        self._retry = retry
        self._attempts = attempts
        self._binding = binding
        self._telemetry = telemetry or Telemetry()
        self._whose = group, consumer, stream.key
        self._log = Fields(log, group=group, consumer=consumer)
        self._told = self._totals()
        self._failing: set[str] = set()
        self._acknowledging: Acknowledgement | None = None
        self._unacknowledged: frozenset[str] = frozenset()  # applied and counted, and then Redis was in trouble

    def process(self, entries: Sequence[Entry], *, more: bool = False) -> list[Failure]:
        """Decodes, applies and settles entries.

        Args:
            more: whether more entries are on their way. Then the reply to the acknowledgement is read when they are
                decoded, or by `finish`; but at once if somebody listens, who is told of settled batches.

        Returns:
            Those on which the handler failed and may be tried again. They stay pending.

        Raises:
            InfrastructureError: Redis or the store is in trouble. What was not acknowledged is still pending.
        """
        if not self._telemetry:
            batch = self._sorted(entries)
            self.finish()
            return self._settle(batch, self._apply(batch.received), more=more)
        watch = Stopwatch(self._telemetry, self._whose, len(entries))
        batch = self._sorted(entries)
        watch.decoded(batch.received)
        try:
            outcomes = self._apply(batch.received)
            watch.lap()
            failed = self._settle(batch, outcomes)
        except BaseException as error:
            watch.failed(error)
            raise
        before, self._told = self._told, self._totals()
        watch.applied(outcomes, [now - then for now, then in zip(self._told, before, strict=True)])
        return failed

    def _sorted(self, entries: Sequence[Entry]) -> _Batch[E]:
        """The entries by what they turn out to be."""
        batch: _Batch[E] = _Batch(entries)
        events, others = self._decoder.read_all(entries)
        ids = [entry_id for entry_id, _, _ in entries]
        if others:
            ids = [entry_id for entry_id in ids if entry_id not in others]
            self._set_apart(batch, others)
        new = tuple.__new__  # a named tuple's own takes twice as long
        batch.received = [new(Received, pair) for pair in zip(events, ids, strict=True)]
        return batch

    def _set_apart(self, batch: _Batch[E], others: Mapping[str, DataError | None]) -> None:
        for entry in batch.entries:
            if entry.id not in others:
                continue
            error = others[entry.id]
            if error is None:
                batch.ignored.append(entry.id)
            elif entry.fields:
                batch.dead.append(Rejected(None, entry.id, DeadLetter(error.reason, error.message)))
            else:
                batch.lost.append(entry.id)

    def finish(self) -> None:
        """Waits until what was acknowledged last is known to be so.

        Raises:
            RedisUnreachable, RedisRefused: it is not known, and may come again.
        """
        acknowledging, self._acknowledging = self._acknowledging, None
        if acknowledging is None:
            return
        try:
            acknowledging.finish()
        except InfrastructureError:
            self._unacknowledged = frozenset(acknowledging.ids)
            raise
        self._unacknowledged = frozenset()
        self._settled(acknowledging.ids)

    def abandon(self) -> None:
        """Does not wait for it: what was not acknowledged comes again."""
        acknowledging, self._acknowledging = self._acknowledging, None
        if acknowledging is not None:
            acknowledging.drop()
            self._unacknowledged = frozenset(acknowledging.ids)

    def _settle(self, batch: _Batch[E], outcomes: Sequence[Outcome], *, more: bool = False) -> list[Failure]:
        """Acknowledges and buries, by what the handler said of the events; those on which it failed."""
        done, acks, failed = self._decided(batch, outcomes)
        self._count(done, acks)
        try:
            self._begin_acknowledging([*batch.ignored, *done])
        except InfrastructureError:
            self._unacknowledged = frozenset(done)
            raise
        if more and len(done) == len(batch.entries):
            return []
        self.finish()
        self.counts.ignored += len(batch.ignored)
        if failed:
            self._failing.update(failure.entry.id for failure in failed)
            self.counts.retries += len(failed)
            self.counts.failing = len(self._failing)
        self.bury(batch.dead, batch.entries)
        self.give_up(batch.lost)
        return failed

    def _decided(self, batch: _Batch[E], outcomes: Sequence[Outcome]) -> tuple[list[str], Sequence[Ack], list[Failure]]:
        """What becomes of each delivery: the ids that are done with what was said of them, and those on which the
        handler failed. What is refused joins the batch's dead.
        """
        if set(map(type, outcomes)) <= {Ack}:
            return [delivery.entry_id for delivery in batch.received], cast(Sequence[Ack], outcomes), []
        entries = {entry.id: entry for entry in batch.entries}
        done: list[str] = []
        acks: list[Ack] = []
        failed: list[Failure] = []
        for delivery, outcome in zip(batch.received, outcomes, strict=True):
            failures = self._attempts.failed(delivery.entry_id) if isinstance(outcome, Retry) else 0
            match self._retry.decide(outcome, failures):
                case Ack() as ack:
                    done.append(delivery.entry_id)
                    acks.append(ack)
                case Retry(cause, where):
                    failed.append(Failure(entries[delivery.entry_id], failures, cause, where))
                case DeadLetter() as refusal:
                    batch.dead.append(Rejected(delivery.event, delivery.entry_id, refusal))
        return done, acks, failed

    def _count(self, done: Sequence[str], acks: Sequence[Ack]) -> None:
        """Counts what was applied, once: what was not acknowledged because of trouble is counted already."""
        if self._unacknowledged:
            pairs = zip(done, acks, strict=True)
            acks = [ack for entry_id, ack in pairs if entry_id not in self._unacknowledged]
        # most handlers give the same few objects again and again
        kinds = {id(ack): ack for ack in acks}
        for kind, number in Counter(map(id, acks)).items():
            self.counts.count(kinds[kind].effect, number)

    def _totals(self) -> tuple[int, ...]:
        """What is told of a batch, as it stands: the fields of `BatchApplied`, in their order."""
        c = self.counts
        return c.applied, c.superseded, c.duplicates, c.ignored, c.dead, c.lost, c.retries

    def refuse(self, entry: Entry, refusal: DeadLetter) -> None:
        """Moves an entry to the dead letters without giving it to the handler."""
        try:
            event = self._decoder.read(entry)
        except DataError:
            event = None
        self.bury([Rejected(event, entry.id, refusal)], [entry])

    def bury(self, dead: Sequence[Rejected], entries: Sequence[Entry]) -> None:
        """Moves entries to the dead letters, once the handler's settlement log knows of it.

        Args:
            entries: the entries themselves, perhaps among others.
        """
        if not dead:
            return
        by_id = {entry.id: entry for entry in entries}
        held = self._stream.pending_among(self._group, [rejected.entry_id for rejected in dead])
        deliveries = {entry.id: entry.deliveries for entry in held if entry.consumer == self._consumer}
        # what somebody else has taken over is somebody else's to bury, and what is settled has its letter
        ours = [rejected for rejected in dead if rejected.entry_id in deliveries]
        self.counts.duplicates += len(dead) - len(ours)
        if not ours:
            return
        if isinstance(self._handler, SettlementLog):
            self._handler.record_dead(ours)
        self._note_generation()
        letters = [
            letter(each, by_id[each.entry_id], self._group, self._consumer, deliveries[each.entry_id]) for each in ours
        ]
        written = {each.source_id for each in self._stream.bury(self._group, self._consumer, self._dead_key, letters)}
        self.counts.duplicates += len(ours) - len(written)
        self.counts.dead += len(written)
        self._settled(sorted(written))
        self.let_go([each.entry_id for each in ours])
        ours = [rejected for rejected in ours if rejected.entry_id in written]
        by_reason = {each.outcome.reason: each for each in reversed(ours)}
        for reason, first in by_reason.items():
            number = sum(each.outcome.reason == reason for each in ours)
            self._log.error(
                "%d dead letters of group %a: %s; first entry %s: %s",
                number, self._group, reason, first.entry_id, first.outcome.message,
                extra={"reason": reason, "entry_id": first.entry_id, "entries": number},
            )  # fmt: skip
            if self._telemetry:
                self._telemetry.emit(DeadLettered(*self._whose, reason, number, first.entry_id))

    def give_up(self, lost: Sequence[str]) -> None:
        """Acknowledges entries that were trimmed while they were pending: their events are lost here."""
        if not lost:
            return
        if isinstance(self._handler, SettlementLog):
            self._handler.record_lost(lost)
        self._begin_acknowledging(lost)
        self.finish()
        self.counts.lost += len(lost)
        self._log.error(
            "%d entries of %s were trimmed while they were pending, and are lost to group %a; first %s",
            len(lost), self._stream.key, self._group, lost[0],
            extra={"entry_id": lost[0], "entries": len(lost)},
        )  # fmt: skip
        if self._telemetry:
            self._telemetry.emit(Lost(*self._whose, len(lost), lost[0]))

    def let_go(self, ids: Sequence[str]) -> None:
        """Forgets failing entries that are somebody else's by now."""
        if self._failing:
            self._failing.difference_update(ids)
            self.counts.failing = len(self._failing)

    def _begin_acknowledging(self, ids: Sequence[str]) -> None:
        if ids:
            # together: what is acknowledged is in the store as Redis knows it
            advance = self._binding.advance() if self._binding else None
            self._acknowledging = self._stream.begin_acknowledge(self._group, ids, noting=advance)

    def _note_generation(self) -> None:
        if self._binding:
            self._binding.note()

    def _settled(self, ids: Sequence[str]) -> None:
        self._attempts.forget(ids)
        self.let_go(ids)

    def _apply(self, received: Sequence[Received[E]]) -> Sequence[Outcome]:
        return apply_apart(self._handler, received)


def apply_apart(handler: Handler[E], received: Sequence[Received[E]]) -> Sequence[Outcome]:
    """What a handler makes of deliveries: of all together, and one by one when it fails on them, so that one bad event
    does not fail its batch.

    Raises:
        InfrastructureError, StoreMismatch: nothing is known of any of them.
    """
    if not received:
        return []
    try:
        return _checked(handler.apply(received), len(received))
    except (InfrastructureError, StoreMismatch):
        raise
    except Exception as error:
        if len(received) == 1:
            log.debug("the handler failed on event %s", received[0].event.event_id, exc_info=True)
            return [Retry.after(error)]
    return [outcome for delivery in received for outcome in apply_apart(handler, [delivery])]


def _checked(outcomes: Sequence[Outcome], expected: int) -> Sequence[Outcome]:
    """What a handler returned, if it keeps the contract: a wrong answer must not leave entries unsettled."""
    if len(outcomes) != expected:
        raise TypeError(f"the handler returned {len(outcomes)} outcomes for {expected} deliveries")
    for kind in set(map(type, outcomes)):
        if not issubclass(kind, (Ack, Retry, DeadLetter)):
            raise TypeError(f"the handler returned {kind.__name__} and not Ack, Retry or DeadLetter")
    return outcomes
