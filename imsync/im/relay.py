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
from imsync.errors import ImsyncError, InfrastructureError
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
    """

    def __init__(
        self,
        store: UserStore,
        publisher: Publisher,
        *,
        batch: int = 1000,
        order: Order = lambda rows: rows,
        on_sent: Callable[[int], None] = lambda n: None,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._batch = batch
        self._order = order
        self._on_sent = on_sent

    def drain(self) -> int:
        """Publishes until nothing waits; how many were published. The caller holds the lock.

        Raises:
            RedisUnreachable: what was not sent stays in the outbox.
            RedisRefused: Redis refused a row; it and its user's later rows stay in the outbox.
        """
        total = 0
        after = 0
        refused: ImsyncError | None = None
        held_back: set[int] = set()
        while rows := self._store.unsent(self._batch, after):
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
        self._on_sent(noted)
        return noted, refused

    def deliver(self, up_to_seq: int, *, patience_seconds: float = 5.0) -> int:
        """Sees to it that the outbox is published up to a row, by this relay or by the one that is active.

        Returns:
            How many rows this relay published.

        Raises:
            RedisUnreachable, RedisRefused: as `drain`.
            ImsyncError: another relay holds the outbox and does not get it done in time.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            with self._lock() as lock:
                if lock:
                    return self.drain()
            first = self._store.unsent(1)
            if not first or first[0].seq > up_to_seq:
                return 0
            if time.monotonic() > deadline:
                raise ImsyncError("another relay holds the outbox and is not getting on", "see `imsync status`")
            time.sleep(POLL_SECONDS)

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
        """
        backoff, rng = backoff or Backoff(), rng or random.Random()
        total = failures = 0
        while not stop.is_set():
            with self._lock() as lock:
                while lock and not stop.is_set():
                    try:
                        total += self.drain()
                        failures = 0
                        stop.wait(poll_seconds)
                    except InfrastructureError as error:
                        failures += 1
                        delay = backoff.delay(failures, rng)
                        on_trouble(error, delay)
                        stop.wait(delay)
            stop.wait(poll_seconds)
        return total

    @contextmanager
    def _lock(self) -> Iterator[IO[bytes] | None]:
        """The lock of this store's relay; None when another holds it. The kernel frees it when a process dies."""
        descriptor = os.open(f"{self._store.path}.relay-lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file
