"""The consumer: claim or read → decode → apply in one transaction → acknowledge.

It takes a handler and never imports a store. The order of commit and acknowledgement is fixed here: nothing is
acknowledged before `Handler.apply` has returned.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from imsync.bus.codec import Decoder
from imsync.bus.event import Event
from imsync.bus.handler import Handler, SettlementLog
from imsync.bus.keys import Keys, check_name
from imsync.bus.liveness import Heartbeat
from imsync.bus.processor import Counts, Processor
from imsync.bus.retry import Backoff, RetryPolicy
from imsync.bus.stream import Entry, Stream
from imsync.bus.takeover import TakeOver
from imsync.errors import GroupMissing, InfrastructureError

if TYPE_CHECKING:
    from imsync.bus.connection import Endpoint

log = logging.getLogger(__name__)

FAILING_LIMIT = 1000
"""A handler that fails on so many events at once gets no more, until some have become dead letters."""

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """How a consumer works.

    Args:
        batch: the most entries per read, and so per transaction.
        block_ms: how long a read waits for the first entry; also the longest wait before a stop is noticed.
        heartbeat_ms: time between two heartbeats.
        retry: what happens when the handler fails.
        backoff: how long to wait when Redis or the store is in trouble.
        until_empty: end when nothing is undelivered and nothing is held by the dead; what the living hold stays
            theirs.
        max_events: end after so many deliveries.
    """

    batch: int = 2000
    block_ms: int = 500
    heartbeat_ms: int = 1000
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    backoff: Backoff = field(default_factory=Backoff)
    until_empty: bool = False
    max_events: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "block_ms", "heartbeat_ms", "max_events"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(slots=True)
class _Failing:
    """An entry on which the handler has failed: tried alone when its time comes."""

    entry: Entry
    failures: int
    due: float


def unique_name() -> str:
    """A consumer name that no other process has or had: host, pid and randomness."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32] or "host"
    return f"{host}.{os.getpid()}.{os.urandom(3).hex()}"


class Consumer(Generic[E]):
    """One member of a consumer group.

    Args:
        endpoint: where Redis is; the consumer makes connections of its own.
        keys: the keys of the destination.
        group: the consumer group; created from the beginning of the stream when it does not exist.
        events: the event classes that the handler takes.
        handler: applies them.
        ignore: event types to pass over; any other undeclared type becomes a dead letter.
        name: this consumer's name; a unique one when None. A fixed name must not be used twice at once.
        on_batch: called after every settled batch with the counts so far.
        on_trouble: called for every failure of Redis or the store, with the seconds until the next attempt.
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
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.group = check_name("group", group)
        self.name = unique_name() if name is None else check_name("consumer", name)
        self._name_is_ours = name is None
        self._options = options or ConsumerOptions()
        self._endpoint = endpoint
        self._keys = keys
        self._handler = handler
        self._on_batch = on_batch or (lambda counts: None)
        self._on_trouble = on_trouble or (lambda error, seconds: None)
        self._clock = clock
        self._rng = rng or random.Random()
        self._stop = threading.Event()
        self._client = endpoint.connect(block_ms=self._options.block_ms)
        self._stream = Stream(self._client, keys.stream, str(endpoint))
        self._takeover = TakeOver(self._client, self._stream, keys, self.group, self.name, self._options.heartbeat_ms)
        self._processor = Processor(
            self._stream,
            keys.dead(self.group),
            group=self.group,
            consumer=self.name,
            decoder=Decoder(events, ignore),
            handler=handler,
            retry=self._options.retry,
        )
        self.counts = self._processor.counts
        self._failing: dict[str, _Failing] = {}
        self._own_after: str | None = "0"  # entries that this name holds from before are drained first
        self._next_takeover = 0.0
        self._sources = deque((self._retries_due, self._entries_of_the_dead, self._new_entries))
        self._drained = False
        self._consecutive_troubles = 0

    def stop(self) -> None:
        """Asks `run` to return once the batch at hand is settled. May be called from a signal handler."""
        self._stop.set()

    def run(self) -> Counts:
        """Consumes until told to stop, or until the options say that it is done.

        Raises:
            RedisUnreachable, RedisRefused: at the start only. Later troubles are waited out, loudly.
            GroupMissing: the group was deleted, and the handler keeps no settlement log, so that reading the
                stream again would repeat effects.
        """
        heartbeat = Heartbeat(self._endpoint, self._keys.alive(self.group, self.name), self._options.heartbeat_ms)
        heartbeat.start()
        try:
            self._stream.create_group(self.group)
            while not self._done():
                try:
                    self._step()
                    self._consecutive_troubles = 0
                except InfrastructureError as error:
                    self._wait_out(error)
            self._leave()
        finally:
            heartbeat.stop()
            self._client.close()
        return self.counts

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────

    def _done(self) -> bool:
        if self._stop.is_set():
            return True
        limit = self._options.max_events
        return self._drained or (limit is not None and self.counts.events >= limit)

    def _step(self) -> None:
        # what this name holds comes first: after a broken connection, before anything new
        if entries := self._own_entries() or self._next_in_turn():
            self._process(entries)
            self._on_batch(self.counts)
        elif self._options.until_empty and not self._failing:
            # a consumer that was killed a moment ago still looks alive: wait until its heartbeat proves either
            self._drained = not self._takeover.any_dead_soon(self._stop)
            self._next_takeover = 0.0

    def _next_in_turn(self) -> list[Entry]:
        """Entries of the next source that has some: none of them starves the others."""
        for _ in range(len(self._sources)):
            source = self._sources[0]
            self._sources.rotate(-1)
            if entries := source():
                return entries
        return []

    def _process(self, entries: Sequence[Entry]) -> None:
        failures = {entry_id: failing.failures for entry_id, failing in self._failing.items()}
        failed = self._processor.process(entries, failures)
        for entry in entries:
            self._failing.pop(entry.id, None)
        for failure in failed:
            delay = self._options.retry.backoff.delay(failure.failures, self._rng)
            self._failing[failure.entry.id] = _Failing(failure.entry, failure.failures, self._clock() + delay)
            log.warning(
                "entry %s failed %d times, again in %.1f s: %s",
                failure.entry.id, failure.failures, delay, failure.error,
            )  # fmt: skip

    # ── where entries come from ──────────────────────────────────────────────────────────────────────

    def _room(self) -> int:
        # failing entries are kept at hand: when there are very many, nothing more is taken on
        room = self._options.batch if len(self._failing) < FAILING_LIMIT else 0
        limit = self._options.max_events
        return max(0, room if limit is None else min(room, limit - self.counts.events))

    def _own_entries(self) -> list[Entry]:
        """What this name already holds: after a restart, or after a connection broke in the middle."""
        while self._own_after is not None and (room := self._room()):
            entries = self._stream.read_own(self.group, self.name, self._own_after, room)
            self._own_after = entries[-1].id if entries else None
            if fresh := [entry for entry in entries if entry.id not in self._failing]:
                return fresh
        return []

    def _entries_of_the_dead(self) -> list[Entry]:
        """What consumers hold that are dead."""
        if self._clock() < self._next_takeover:
            return []
        entries = self._takeover.take(self._room(), self._processor.give_up)
        self.counts.taken_over += len(entries)
        if not entries:
            self._next_takeover = self._clock() + self._options.heartbeat_ms / 1000
        return entries

    def _new_entries(self) -> list[Entry]:
        room = self._room()
        if room == 0:
            self._stop.wait(0.05)
            return []
        until_takeover_ms = int((self._next_takeover - self._clock()) * 1000)
        patient = not (self._options.until_empty or until_takeover_ms < 1 or self._failing)
        block_ms = min(self._options.block_ms, until_takeover_ms) if patient else None
        entries = self._stream.read_new(self.group, self.name, room, block_ms)
        if not entries and self._failing:
            self._stop.wait(0.05)
        return entries

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────

    def _retries_due(self) -> list[Entry]:
        now = self._clock()
        for failing in self._failing.values():
            if failing.due <= now:
                return [failing.entry]  # alone, so that it fails nobody else
        return []

    def _wait_out(self, error: InfrastructureError) -> None:
        self.counts.troubles += 1
        self._consecutive_troubles += 1
        self._own_after = "0"  # a read whose reply was lost leaves entries pending under this name
        if isinstance(error, GroupMissing):
            self._recreate_group(error)
        delay = self._options.backoff.delay(self._consecutive_troubles, self._rng)
        self._on_trouble(error, delay)
        self._stop.wait(delay)

    def _recreate_group(self, error: GroupMissing) -> None:
        if not isinstance(self._handler, SettlementLog):
            raise GroupMissing(
                f"group {self.group} of {self._keys.stream} was deleted, and this handler would repeat its effects",
                "decide where it should start, and create it with XGROUP CREATE",
            ) from error
        log.error("group %s of %s was deleted: created again from the start", self.group, self._keys.stream)
        try:
            self._stream.create_group(self.group)  # never at `$`, which would skip what was published meanwhile
        except InfrastructureError as again:
            log.error("group %s could not be created: %s", self.group, again)

    def _leave(self) -> None:
        """Deregisters, unless something is still held or the name is somebody's choice."""
        try:
            held = self._stream.pending_summary(self.group).by_consumer
            self.counts.left_pending = sum(held.values())
            if self._name_is_ours and self.name not in held:
                self._stream.delete_consumer(self.group, self.name)
        except InfrastructureError as error:
            log.debug("consumer %s not deregistered: %s", self.name, error)
