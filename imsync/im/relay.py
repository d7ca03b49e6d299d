"""The relay: publishes what waits in the outbox, in the order of the edits, and notes the entry ids.

Only one relay of a user store is active at a time: it holds an exclusive lock beside the store's file.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from imsync.bus.publisher import Publisher
from imsync.bus.retry import Backoff
from imsync.errors import ImsyncError, InfrastructureError, StoreUnusable
from imsync.im.user_store import OutboxRow, UserStore

POLL_SECONDS = 0.02

Order = Callable[[Sequence[OutboxRow]], Sequence[OutboxRow]]
"""Arranges the rows of a round trip: the simulator repeats and reorders some. The identity otherwise."""


class Relay:
    """Publishes the outbox of a user store.

    Args:
        store: whose outbox.
        publisher: where to.
        batch: the most events per round trip.
        order: how the rows of a round trip are arranged.
        on_sent: called after every round trip with the number of rows noted as sent.
        on_waiting: called when it starts to wait for another relay.
    """

    def __init__(
        self,
        store: UserStore,
        publisher: Publisher,
        *,
        batch: int = 1000,
        order: Order = lambda rows: rows,
        on_sent: Callable[[int], None] = lambda n: None,
        on_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._batch = batch
        self._order = order
        self._on_sent = on_sent
        self._on_waiting = on_waiting
        self.published = 0
        """How many rows it has noted as sent, those before an error included."""

    def drain(self, stop: threading.Event | None = None) -> int:
        """Publishes until nothing waits; how many were published. The caller holds the lock.

        Args:
            stop: when it is set, the round trip at hand is finished and no other begun.

        Raises:
            RedisUnreachable: what was not sent stays in the outbox.
            RedisRefused: Redis refused a row; it and its user's later rows stay in the outbox.
        """
        total = 0
        after = 0
        refused: ImsyncError | None = None
        held_back: set[int] = set()
        while not _told(stop) and (rows := self._store.unsent(self._batch, after)):
            after = rows[-1].seq
            sent, error = self._send([row for row in rows if row.user_id not in held_back], held_back)
            total += sent
            refused = refused or error
        if refused:
            raise refused
        return total

    def _send(self, rows: Sequence[OutboxRow], held_back: set[int]) -> tuple[int, ImsyncError | None]:
        ordered = self._order(rows)
        results = self._publisher.send([row.body for row in ordered])
        sent: list[tuple[int, str]] = []
        refused: ImsyncError | None = None
        for row, result in zip(ordered, results, strict=True):
            if isinstance(result, ImsyncError):
                refused = refused or result
                held_back.add(row.user_id)
            elif row.user_id not in held_back:  # a later row waits behind a refused one, and is sent again
                sent.append((row.seq, result))
        noted = self._store.mark_sent(sent) if sent else 0
        self.published += noted
        self._on_sent(noted)
        return noted, refused

    def deliver(self, up_to_seq: int, *, patience_seconds: float = 5.0, stop: threading.Event | None = None) -> int:
        """Sees to it that the outbox is published up to a row, by this relay or by the one that is active.

        Args:
            patience_seconds: how long another relay may hold the outbox without getting on.
            stop: when it is set, the round trip at hand is finished, and what is left stays in the outbox.

        Returns:
            How many rows this relay published.

        Raises:
            RedisUnreachable, RedisRefused: as `drain`.
            StoreUnusable: the relay's lock cannot be used, or the store.
            ImsyncError: another relay holds the outbox and is not getting on.
        """
        waits_at: int | None = None
        deadline = 0.0
        while not _told(stop):
            with self._lock() as lock:
                if lock:
                    return self.drain(stop)
            first = self._store.unsent(1)
            if not first or first[0].seq > up_to_seq:
                return 0
            if waits_at is None:
                self._on_waiting()
            if waits_at is None or first[0].seq > waits_at:
                waits_at = first[0].seq
                deadline = time.monotonic() + patience_seconds
            elif time.monotonic() > deadline:
                raise ImsyncError("another relay holds the outbox and is not getting on", "see `imsync status`")
            time.sleep(POLL_SECONDS)
        return 0

    def run(
        self,
        stop: threading.Event,
        *,
        poll_seconds: float,
        on_trouble: Callable[[InfrastructureError, float], None],
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> int:
        """Keeps the outbox drained until told to stop; how many were published.

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
                while lock and not stop.is_set():
                    try:
                        self.drain(stop)
                        failures = 0
                        stop.wait(poll_seconds)
                    except InfrastructureError as error:
                        failures += 1
                        delay = backoff.delay(failures, rng)
                        on_trouble(error, delay)
                        stop.wait(delay)
            stop.wait(poll_seconds)
        return self.published - published_before

    @contextmanager
    def _lock(self) -> Iterator[IO[bytes] | None]:
        """The lock of this store's relay; None when another holds it. The kernel frees it when a process dies."""
        path = f"{self._store.path}.relay-lock"
        try:
            file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "rb+")
        except OSError as error:
            raise _lock_unusable(path, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = False
            except OSError as error:
                raise _lock_unusable(path, error) from error
            else:
                held = True
            yield file if held else None


def _told(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()


def _lock_unusable(path: str, error: OSError) -> StoreUnusable:
    return StoreUnusable(
        f"cannot lock {path}: {error.strerror}", "it must be a file that you may write, on a disk that has locks"
    )
