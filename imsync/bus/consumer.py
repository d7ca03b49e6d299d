"""The consumer: claim or read → decode → apply in one transaction → acknowledge.

It takes a handler and never imports a store. The order of commit and acknowledgement is fixed here: nothing is
acknowledged before `Handler.apply` has returned.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from imsync.bus.ahead import Ahead
from imsync.bus.at_hand import AtHand
from imsync.bus.attempts import Attempts
from imsync.bus.binding import Binding
from imsync.bus.codec import Decoder
from imsync.bus.deferred import Deferred
from imsync.bus.entry import Entry
from imsync.bus.event import Event
from imsync.bus.failing import Failing
from imsync.bus.handler import Handler, LeanHandler, SettlementLog, bound_store
from imsync.bus.keys import Keys, check_name
from imsync.bus.liveness import Heartbeat
from imsync.bus.logfields import Fields
from imsync.bus.options import ConsumerOptions, unique_name
from imsync.bus.own_group import OwnGroup
from imsync.bus.processor import Counts, Processor
from imsync.bus.stream import Stream
from imsync.bus.suspicion import Suspicion
from imsync.bus.takeover import TakeOver
from imsync.bus.telemetry import ConsumerStarted, ConsumerStopped, TakenOver, Telemetry, Trouble
from imsync.bus.upkeep import Upkeep
from imsync.bus.vitals import Journal
from imsync.errors import GroupMissing, InfrastructureError, LeaseTaken, RedisRefused, RedisUnreachable

if TYPE_CHECKING:
    from imsync.bus.connection import Endpoint

log = logging.getLogger(__name__)

FAILING_LIMIT = 1000
"""A handler that fails on so many events at once gets no more, until some have become dead letters."""

POLL_SECONDS = 0.05
"""The longest wait for something new while failing events wait for their next attempt."""

_OF_REDIS = (RedisUnreachable, RedisRefused, GroupMissing, LeaseTaken)

E = TypeVar("E", bound=Event)


class Consumer(Generic[E]):
    """One member of a consumer group.

    Args:
        endpoint: where Redis is; the consumer makes connections of its own.
        keys: the keys of the destination.
        group: the consumer group; created from the beginning of the stream when it does not exist.
        events: the event classes that the handler takes.
        handler: applies them.
        ignore: event types to pass over; any other undeclared type becomes a dead letter.
        name: this consumer's name; a unique one when None. A name that another living consumer has is waited for.
        on_batch: called after every applied batch with the counts so far.
        on_trouble: called for every failure of Redis or the store, with the seconds until the next attempt.
        telemetry: who is told what happens. What the two calls above raise ends the consumer; a listener cannot.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        keys: Keys,
        *,
        group: str,
        events: Sequence[type[E]],
        handler: Handler[E],
        ignore: Collection[str] = (),
        name: str | None = None,
        options: ConsumerOptions | None = None,
        on_batch: Callable[[Counts], None] | None = None,
        on_trouble: Callable[[InfrastructureError, float], None] | None = None,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.group = check_name("group", group)
        self.name = unique_name() if name is None else check_name("consumer", name)
        self._options = options or ConsumerOptions()
        self._keys = keys
        self._handler = handler
        self._on_batch = on_batch or (lambda counts: None)
        self._on_trouble = on_trouble or (lambda error, seconds: None)
        self._telemetry = telemetry or Telemetry()
        self._whose = self.group, self.name, keys.stream
        self._log = Fields(log, group=self.group, consumer=self.name)
        self._clock = clock
        self._rng = rng or random.Random()
        self._stop = threading.Event()
        self._heartbeat_seconds = self._options.heartbeat_ms / 1000
        self._heartbeat = Heartbeat(
            endpoint,
            keys.alive(self.group, self.name),
            self._options.heartbeat_ms,
            lambda client: self._at_hand.keep(client),
            vitals_key=keys.vitals(self.group, self.name),
            vitals=lambda: self._journal.vitals(),
        )
        self._client = endpoint.connect(block_ms=self._options.block_ms)
        self._stream = Stream(self._client, keys.stream, str(endpoint))
        self._own_group = OwnGroup(
            self._stream, self.group, may_repeat=isinstance(handler, SettlementLog), log=self._log
        )
        self._takeover = TakeOver(
            self._client, self._stream, keys, self.group, self.name, self._options.heartbeat_ms, clock
        )
        self._attempts = Attempts(self._client, keys, self.group, self.name, self._heartbeat.token, self._stream.where)
        store = bound_store(handler)
        self._binding = Binding(self._client, self._stream, keys, self.group, store) if store else None
        self._processor = Processor(
            self._stream,
            keys.dead(self.group),
            group=self.group,
            consumer=self.name,
            decoder=Decoder(events, ignore, lean=isinstance(handler, LeanHandler) and handler.lean),
            handler=handler,
            retry=self._options.retry,
            attempts=self._attempts,
            binding=self._binding,
            telemetry=self._telemetry,
        )
        self.counts = self._processor.counts
        self._journal = Journal(self.counts)
        self._at_hand = AtHand(self._stream, self.group, self.name, self._options.heartbeat_ms, clock)
        self._ahead = Ahead(self._stream, self.group, self.name, self._heartbeat_seconds, clock)
        self._failing = Failing(self._options.retry.backoff, clock, self._rng, self._log)
        self._suspicion = Suspicion(self._stream, self.group, self._attempts)
        self._deferred = Deferred(handler, self._stop, self._log, clock)  # a killed consumer may have left something
        self._own_after: str | None = "0"  # entries that this name holds from before are drained first
        self._next_takeover = 0.0
        self._next_check = 0.0
        self._upkeep = Upkeep(self._stream, self._options.retention, handler, clock=clock, rng=self._rng)
        self._sources = deque((self._retries_due, self._suspects_alone, self._entries_of_the_dead, self._new_entries))
        self._drained = False
        self._consecutive_troubles = 0
        self._last_trouble = -1e9

    def stop(self) -> None:
        """Asks `run` to return once the batch at hand is settled. May be called from a signal handler."""
        self._stop.set()

    def run(self) -> Counts:
        """Consumes until told to stop, or until the options say that it is done.

        Raises:
            RedisUnreachable, RedisRefused: at the start only. Later troubles are waited out, loudly.
            GroupMissing: the group was deleted, and the handler keeps no settlement log, so that reading the
                stream again would repeat effects.
            StoreMismatch: the handler's store is not the one that belongs to the group.
        """
        try:
            self._heartbeat.start()
            self._own_group.create()
            if self._telemetry:
                self._telemetry.emit(ConsumerStarted(*self._whose))
            while not self._done():
                try:
                    self._step()
                    self._consecutive_troubles = 0
                except InfrastructureError as error:
                    self._wait_out(error)
            self._leave()
        finally:
            self._ahead.drop()
            self._heartbeat.stop()
            self._client.close()
            if self._telemetry:
                counts = self.counts
                self._telemetry.emit(ConsumerStopped(*self._whose, counts.events, counts.troubles, counts.left_pending))
        return self.counts

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────

    def _done(self) -> bool:
        if self._stop.is_set():
            return not self._ahead  # what it was given already is settled first
        limit = self._options.max_events
        return self._drained or (limit is not None and self.counts.events >= limit and not self._deferred)

    def _step(self) -> None:
        if not self._heartbeat.ensure():
            raise LeaseTaken(self.name, self._heartbeat.holder)
        self._look_after()
        had_asked = bool(self._ahead)
        if self._stop.is_set():
            entries = self._ahead.take()
        else:
            # what this name holds comes first: after a broken connection, before anything new
            entries = self._at_hand.take_back() or self._own_entries() or self._next_in_turn()
        if entries:
            was_ahead = had_asked and not self._ahead
            self._look_ahead(len(entries))
            self._process(entries, more=was_ahead and bool(self._ahead))
            self._on_batch(self.counts)
            self._deferred.look()
        else:
            self._idle()
        if not self._stop.is_set():
            self._deferred.go_on()

    def _idle(self) -> None:
        """Nothing was given."""
        self._processor.finish()
        if self._deferred:
            self._deferred.pause()
        elif self._options.until_empty and not self._failing and not self._suspicion:
            # a consumer that was killed a moment ago still looks alive: wait until its heartbeat proves either
            self._drained = not (self._takeover.any_dead_soon(self._stop) or self._holds_more())
            self._next_takeover = 0.0

    def _next_in_turn(self) -> list[Entry]:
        """Entries of the next source that has some: none of them starves the others."""
        for _ in range(len(self._sources)):
            source = self._sources[0]
            self._sources.rotate(-1)
            if entries := source():
                return entries
        return []

    def _process(self, entries: Sequence[Entry], *, more: bool) -> None:
        self._at_hand.hold(entries)
        failed = self._processor.process(entries, more=more)
        self._journal.settled()
        self._at_hand.let_go()
        self._suspicion.forget(entry.id for entry in entries)
        self._failing.forget(entry.id for entry in entries)
        self._failing.add(failed)
        for failure in failed:
            self._journal.failed(failure.error.partition(":")[0])

    def _look_after(self) -> None:
        """What is due besides the entries: the store's binding, marks to remove, trimming and pruning."""
        self._suspicion.survived()
        now = self._clock()
        if now >= self._next_check:
            self._processor.finish()  # and gives back its connection
            if self._binding:
                self._binding.check()
            self._deferred.look()
            self._next_check = now + self._heartbeat_seconds
        self._upkeep.step()

    # ── where entries come from ──────────────────────────────────────────────────────────────────────

    def _room(self, at_hand: int = 0) -> int:
        # failing entries are kept at hand: when there are very many, nothing more is taken on
        room = self._options.batch if len(self._failing) + len(self._suspicion) < FAILING_LIMIT else 0
        limit = self._options.max_events
        return max(0, room if limit is None else min(room, limit - self.counts.events - at_hand))

    def _own_entries(self) -> list[Entry]:
        """What this name already holds: after a restart, or after a connection broke in the middle."""
        while self._own_after is not None and (room := self._room()):
            entries = self._stream.read_own(self.group, self.name, self._own_after, room)
            self._own_after = entries[-1].id if entries else None
            fresh = [e for e in entries if e.id not in self._failing and e.id not in self._suspicion]
            if unsuspicious := self._suspicion.sift(fresh):
                return unsuspicious
        return []

    def _entries_of_the_dead(self) -> list[Entry]:
        """What consumers hold that are dead."""
        if self._clock() < self._next_takeover:
            return []
        self._processor.finish()  # it is looked at what this name holds, too
        entries = self._takeover.take(self._room(), self._processor.give_up)
        self.counts.taken_over += len(entries)
        if entries and self._telemetry:
            self._telemetry.emit(TakenOver(*self._whose, len(entries)))
        if not entries:
            self._next_takeover = self._clock() + self._heartbeat_seconds
            self._holds_more()
        return self._suspicion.sift(entries)

    def _holds_more(self) -> bool:
        """Whether this name holds entries that it does not know of; if so, they are read next. A request that a broken
        connection left behind is carried out late, when what it gives is given to nobody.
        """
        if self._ahead:
            return False
        more = self._takeover.held > len(self._failing) + len(self._suspicion)
        if more:
            self._own_after = "0"
        return more

    def _look_ahead(self, at_hand: int) -> None:
        """Asks for what comes next, where more waits, so that the server looks for it while the batch is settled. Not
        while the handler fails, when less and less is taken on, nor before what this name holds from before is drained,
        which would find these entries, too.
        """
        troubled = self._failing or self._suspicion or self._own_after is not None
        if self._ahead.more_waits and not (troubled or self._stop.is_set()) and (room := self._room(at_hand)):
            self._ahead.ask(room)

    def _new_entries(self) -> list[Entry]:
        if self._ahead:
            return self._ahead.take()
        room = self._room()
        waiting = self._failing or self._suspicion
        if room == 0:
            if not self._deferred:
                self._wait_for_retries()
            return []
        until_takeover_ms = int((self._next_takeover - self._clock()) * 1000)
        patient = not (self._options.until_empty or until_takeover_ms < 1 or waiting or self._deferred)
        block_ms = min(self._options.block_ms, until_takeover_ms) if patient else None
        entries = self._stream.read_new(self.group, self.name, room, block_ms)
        self._ahead.more_waits = len(entries) == room
        if not entries and self._failing:
            self._wait_for_retries()
        return entries

    def _wait_for_retries(self) -> None:
        if (seconds := min(POLL_SECONDS, self._failing.seconds_left())) > 0:
            self._stop.wait(seconds)

    def _retries_due(self) -> list[Entry]:
        for entry in self._failing.due():
            if self._at_hand.still_ours([entry.id]):
                return [entry]  # alone, so that it fails nobody else
            self._failing.forget([entry.id])  # taken over while this consumer seemed dead
            self._processor.let_go([entry.id])
        return []

    def _suspects_alone(self) -> list[Entry]:
        """One suspect, to be tried alone under a durable mark."""
        suspect = self._suspicion.next()
        if suspect is None:
            return []
        entry, deaths = suspect
        if not self._at_hand.still_ours([entry.id]):
            self._suspicion.forget([entry.id])  # taken over while this consumer seemed dead
        elif refusal := self._options.retry.condemn(deaths):
            self._processor.refuse(entry, refusal)
            self._suspicion.forget([entry.id])
        else:
            self._suspicion.begin(entry.id)
            return [entry]
        return []

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────

    def _wait_out(self, error: InfrastructureError) -> None:
        self.counts.troubles += 1
        self._journal.failed(error.kind)
        self._consecutive_troubles += 1
        self._last_trouble = self._clock()
        self._next_check = 0.0
        is_of_redis = isinstance(error, _OF_REDIS) or not self._is_acknowledged()
        if is_of_redis or self._stop.is_set():
            self._ahead.drop()
        if is_of_redis:
            self._processor.abandon()
            self._own_after = "0"  # a read whose reply was lost leaves entries pending under this name
            self._at_hand.let_go()
        elif any(entry.id in self._suspicion for entry in self._at_hand):
            self._at_hand.let_go()  # it is tried again under its mark
        if isinstance(error, GroupMissing):
            self._own_group.create_again(error)
        delay = self._options.backoff.delay(self._consecutive_troubles, self._rng)
        self._on_trouble(error, delay)
        if self._telemetry:
            self._telemetry.emit(Trouble(*self._whose, error.kind, error.message, self._consecutive_troubles, delay))
        self._stop.wait(delay)

    def _is_acknowledged(self) -> bool:
        """Whether what was to be acknowledged is."""
        try:
            self._processor.finish()
        except InfrastructureError:
            return False
        return True

    def _leave(self) -> None:
        """Deregisters, unless something is still held."""
        try:
            self._processor.finish()
            held = self._stream.pending_summary(self.group).by_consumer
            self.counts.left_pending = sum(held.values())
            # a read that a broken connection left behind at the server may still be given entries in this name,
            # and deleting it would drop them
            ghost_seconds = self._options.block_ms / 1000 + 1.0
            settled_down = self._clock() - self._last_trouble > ghost_seconds
            if self.name not in held and self._heartbeat.held and settled_down:
                self._stream.delete_consumer(self.group, self.name)
        except InfrastructureError as error:
            self._log.debug("consumer %s not deregistered: %s", self.name, error)
