"""The relay: publishes what waits in the outbox, in the order of the edits, and notes the entry ids. What the stream
has lost since then it publishes again.

Only one relay of a user store is active at a time: it holds an exclusive lock beside the store's file.
"""

from __future__ import annotations

import fcntl
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress

from imsync.bus.publisher import Publisher
from imsync.bus.retry import Backoff
from imsync.bus.telemetry import Relayed, RelayTrouble, Resent
from imsync.errors import ImsyncError, InfrastructureError, RedisRefused, StoreUnusable
from imsync.im.loss import LossCheck
from imsync.im.outbox import OutboxRow
from imsync.im.pruning import Pruning
from imsync.im.relay_lock import LOCK, PAUSE, locked
from imsync.im.user_store import UserStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
IDLE_LOOK_SECONDS = 1.0
"""Time between two looks for a loss while there is nothing to send."""
STOP_LOOK_SECONDS = 0.05
"""Time between two looks at `stop` while it waits for an edit."""
MOST_LOSSES = 3
"""A stream that loses what was sent more often than this, before all of it has been sent, is given no more."""
PRUNING_STEPS = 10
"""How many batches one delivery prunes at most: somebody waits for its end."""

Order = Callable[[Sequence[OutboxRow]], Sequence[OutboxRow]]
"""Arranges the rows of a round trip: the simulator repeats and reorders some. The identity otherwise."""


class Relay:
    """Publishes the outbox of a user store.

    Args:
        store: whose outbox.
        publisher: where to. Its telemetry is the relay's, too.
        batch: the most events per round trip.
        order: how the rows of a round trip are arranged.
        history_hours: the stream's retention keeps entries for as long; what is gone earlier was lost. See `LossCheck`.
        keep_sent_hours: how long sent rows are kept at least; never for less than `history_hours`. See `Pruning`.
        at_once: send first and look for a loss afterwards, where nobody has sent anything since the last look. Then an
            edit is in the stream a round trip earlier, and what was lost meanwhile comes behind it, the edit with it.
        on_sent: called after every round trip with the number of rows noted as sent.
        on_lost: called with the number of rows that are sent again, when the stream has lost some.
        on_waiting: called when it starts to wait for another relay.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: UserStore,
        publisher: Publisher,
        *,
        batch: int = 1000,
        order: Order = lambda rows: rows,
        history_hours: float = 24.0,
        keep_sent_hours: float = 168.0,
        at_once: bool = False,
        on_sent: Callable[[int], None] = lambda n: None,
        on_lost: Callable[[int], None] = lambda n: None,
        on_waiting: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._telemetry = publisher.telemetry
        self._batch = batch
        self._order = order
        self._loss = LossCheck(store, publisher, history_hours=history_hours, on_lost=self._note_loss)
        self._pruning = Pruning(store, publisher.stream, keep_hours=max(keep_sent_hours, history_hours), clock=clock)
        self._on_sent = on_sent
        self._on_lost = on_lost
        self._on_waiting = on_waiting
        self._clock = clock
        self._at_once = at_once
        self._next_look = float("-inf")
        self._looked_at: tuple[int, int] | None = None
        self._alone = False
        self._standing = ExitStack()
        self._standing_thread: int | None = None
        self._sent: list[tuple[int, str]] = []
        self.published = 0
        """How many rows it has noted as sent, those before an error included."""
        self.resent = 0
        """How many rows it has made unsent again because the stream had lost them."""

    def drain(self, stop: threading.Event | None = None) -> int:
        """Publishes until nothing waits and nothing is lost, or somebody wants to be `alone`; how many were published.
        The caller holds the lock.

        Args:
            stop: when it is set, the round trip at hand is finished and no other begun.

        Raises:
            RedisUnreachable: what was not sent stays in the outbox.
            RedisRefused: Redis refused a row; it and its user's later rows stay in the outbox. Or the stream loses
                what it is sent again and again.
        """
        total, after, losses = 0, 0, 0
        refused: ImsyncError | None = None
        held_back: set[int] = set()
        total += self._note_what_was_sent()
        has_asked = self._stands_by
        while not _told(stop) and (has_asked or not self._asked_to_pause()):
            has_asked = False
            rows, has_just_looked = self._waiting(after)
            if not has_just_looked and self._look(idle=not rows):
                losses += 1
                if losses > MOST_LOSSES:
                    raise self._trimmed_by_somebody()
                after = 0  # what was lost comes before what was not sent yet
                continue
            if not rows:
                break
            after = rows[-1].seq
            sent, error = self._send([row for row in rows if row.user_id not in held_back], held_back)
            total += sent
            refused = refused or error
        if refused:
            raise refused
        return total

    def _look(self, *, idle: bool) -> int:
        """Looks for a loss; how many rows wait because of one. Not every time while idle, if the last look was good."""
        if idle and self._clock() < self._next_look:
            return 0
        self._next_look, self._looked_at = float("-inf"), None
        lost = self._loss.look()
        self._next_look = self._clock() + IDLE_LOOK_SECONDS
        if self._at_once and not lost:
            self._looked_at = self._store.sending_state()
        return lost

    def _waiting(self, after_seq: int) -> tuple[list[OutboxRow], bool]:
        """The rows of the next round trip, and if there are any, whether the last look was good and no round trip of
        anybody came after it.
        """
        if self._looked_at is None:
            return self._store.unsent(self._batch, after_seq), False
        rows, state = self._store.unsent_and_state(self._batch, after_seq)
        return rows, self._looked_at == state

    def _note_loss(self, rows: int) -> None:
        self.resent += rows
        if self._telemetry:
            self._telemetry.emit(Resent(self._publisher.stream.key, rows))
        self._on_lost(rows)

    def _trimmed_by_somebody(self) -> RedisRefused:
        stream = self._publisher.stream
        return RedisRefused(
            f"{stream.key} at {stream.where} loses events as fast as they are sent",
            "who trims or deletes it? maxmemory-policy must be noeviction",
        )

    def _send(self, rows: Sequence[OutboxRow], held_back: set[int]) -> tuple[int, ImsyncError | None]:
        ordered = self._order(rows)
        self._next_look = float("-inf")
        results = self._publisher.send([row.body for row in ordered])
        sent: list[tuple[int, str]] = []
        refused: ImsyncError | None = None
        for row, result in zip(ordered, results, strict=True):
            if isinstance(result, ImsyncError):
                refused = refused or result
                held_back.add(row.user_id)
            elif row.user_id not in held_back:  # a later row waits behind a refused one, and is sent again
                sent.append((row.seq, result))
        self._sent = sent
        return self._note_what_was_sent(), refused

    def _note_what_was_sent(self) -> int:
        """Notes the last round trip, also if it could not be noted then because the store was in trouble: to send it
        again and again would fill the stream.
        """
        if not self._sent:
            return 0
        noted = self._store.mark_sent(self._sent)
        self._sent = []
        self.published += noted
        if self._telemetry:
            self._telemetry.emit(Relayed(self._publisher.stream.key, noted))
        self._on_sent(noted)
        return noted

    def deliver(self, up_to_seq: int, *, patience_seconds: float = 5.0, stop: threading.Event | None = None) -> int:
        """Sees to it that the outbox is published up to a row, by this relay or by the one that is active. This one
        then also prunes what was sent long ago.

        Args:
            patience_seconds: how long another relay may hold the outbox without getting on.
            stop: when it is set, the round trip at hand is finished, and what is left stays in the outbox.

        Returns:
            How many rows this relay published.

        Raises:
            RedisUnreachable, RedisRefused: as `drain`.
            StoreUnusable: the relay's lock cannot be used, or the store.
            ImsyncError: another relay holds the outbox and is not getting on, or somebody is `alone` with it.
        """
        waits_at: int | None = None
        deadline, published_before = 0.0, self.published
        while not _told(stop):
            with self._turn() as turn:
                if turn:
                    self.drain(stop)
                    if not self._asked_to_pause():
                        self._prune(stop)
                        return self.published - published_before
                    if self._stands_by:
                        self._stand_down()
            first = self._store.unsent(1)
            if not first or first[0].seq > up_to_seq:
                return self.published - published_before
            if waits_at is None:
                self._on_waiting()
            if waits_at is None or first[0].seq > waits_at:
                waits_at = first[0].seq
                deadline = time.monotonic() + patience_seconds
            elif time.monotonic() > deadline:
                if self._asked_to_pause():
                    raise ImsyncError("relays pause while a rebuild is at work", "run `imsync relay` afterwards")
                raise ImsyncError("another relay holds the outbox and is not getting on", "see `imsync status`")
            time.sleep(POLL_SECONDS)
        return self.published - published_before

    @contextmanager
    def standing_by(self) -> Iterator[None]:
        """For an edit and its delivery: the lock is taken, and the question for a pause asked, before the edit. Its
        event is in the stream so much sooner after its commit. While the block runs, no other relay publishes from
        this outbox, nor another thread by this one.

        When another one has its turn, or the lock is in trouble, the block runs all the same, and `deliver` tells.
        """
        if self._stands_by:
            yield  # a block within the block
            return
        with ExitStack() as held:
            with suppress(StoreUnusable):
                if held.enter_context(self._lock()) and not self._asked_to_pause():
                    self._standing, self._standing_thread = held, threading.get_ident()
            if not self._stands_by:
                held.close()
            try:
                yield
            finally:
                if self._stands_by:
                    self._stand_down()

    @property
    def _stands_by(self) -> bool:
        return self._standing_thread == threading.get_ident()

    def _stand_down(self) -> None:
        self._standing_thread = None
        self._standing.close()

    def _turn(self) -> AbstractContextManager[bool]:
        return nullcontext(True) if self._stands_by else self._lock()

    def _prune(self, stop: threading.Event | None) -> None:
        try:
            for _ in range(PRUNING_STEPS):
                if _told(stop) or not self._pruning.step():
                    break
        except InfrastructureError as error:  # everything was delivered all the same
            log.warning("sent rows of the outbox were not pruned: %s", error.message)

    def run(
        self,
        stop: threading.Event,
        *,
        poll_seconds: float,
        on_trouble: Callable[[InfrastructureError, float], None],
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> int:
        """Keeps the outbox drained, and pruned, until told to stop; how many were published.

        An edit through the same store object wakes it. Those of other processes it finds when it polls.

        Troubles of Redis are waited out for ever, with backoff. When another relay is active, it waits for its end.

        Raises:
            StoreUnusable: the relay's lock cannot be used.
        """
        backoff, rng = backoff or Backoff(), rng or random.Random()
        published_before, failures, waiting = self.published, 0, False
        while not stop.is_set():
            with self._lock() as lock:
                if not lock and not waiting:
                    self._on_waiting()
                waiting = not lock
                while lock and not stop.is_set() and not self._asked_to_pause():
                    try:
                        self._store.filled.clear()
                        self.drain(stop)
                        failures = 0
                        if not self._pruning.step():
                            self._wait_for_edits(stop, poll_seconds)
                    except InfrastructureError as error:
                        failures += 1
                        delay = backoff.delay(failures, rng)
                        on_trouble(error, delay)
                        if self._telemetry:
                            stream = self._publisher.stream.key
                            self._telemetry.emit(RelayTrouble(stream, error.kind, error.message, failures, delay))
                        stop.wait(delay)
            stop.wait(poll_seconds)
        return self.published - published_before

    def _wait_for_edits(self, stop: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not stop.is_set() and (left := until - time.monotonic()) > 0:
            if self._store.filled.wait(min(left, STOP_LOOK_SECONDS)):
                break

    @contextmanager
    def alone(self, *, patience_seconds: float = 5.0) -> Iterator[None]:
        """Keeps every relay of this store from publishing while the block runs: one that is active finishes its round
        trip, and goes on afterwards. In the block, `drain` may be called.

        Args:
            patience_seconds: how long another relay's round trip may take, and how long another may want to be alone.

        Raises:
            ImsyncError: it took longer.
            StoreUnusable: the relay's lock cannot be used.
        """
        deadline = time.monotonic() + patience_seconds
        with ExitStack() as held:
            for suffix, who in ((PAUSE, "another rebuild"), (LOCK, "another relay")):
                while not self._taken(suffix, held):
                    if time.monotonic() > deadline:
                        raise ImsyncError(f"{who} is at work on this outbox", "run this again when it has ended")
                    time.sleep(POLL_SECONDS)
            self._alone = True
            try:
                yield
            finally:
                self._alone = False

    def _taken(self, suffix: str, held: ExitStack) -> bool:
        """Takes a lock for as long as the stack lasts; False when another holds it."""
        with ExitStack() as attempt:
            if attempt.enter_context(self._lock(suffix)):
                held.push(attempt.pop_all())
                return True
        return False

    def _asked_to_pause(self) -> bool:
        """Whether somebody wants to be alone with the outbox."""
        if self._alone:
            return False
        with self._lock(PAUSE, fcntl.LOCK_SH) as free:
            return not free

    def _lock(self, suffix: str = LOCK, kind: int = fcntl.LOCK_EX) -> AbstractContextManager[bool]:
        return locked(f"{self._store.path}{suffix}", kind)


def _told(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()
