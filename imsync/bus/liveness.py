"""Who is alive: each consumer holds a lease on its name, an expiring key in Redis, before it reads its first entry.

A consumer that is killed leaves entries pending under its name; when its key has expired, the living take
them over without waiting for a long idle time. Two consumers of one name are one after the other.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, WatchError

from imsync.bus.clock import now_ms
from imsync.bus.connection import Endpoint, as_imsync_error, behind, translated
from imsync.bus.keys import Keys
from imsync.bus.vitals import Vitals, name_in, number_in, read_object
from imsync.errors import InfrastructureError, RedisRefused

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger(__name__)

MISSED_BEATS = 3
"""A consumer is taken for dead when so many heartbeats in a row did not come."""

SHORTEST_TIMEOUT_SECONDS = 1.0
"""What a beat is given at least, so that a slow connection can be made at all."""


class Heartbeat:
    """Keeps one consumer's key alive from a thread of its own, also while a batch takes long.

    Args:
        endpoint: where Redis is; a connection of its own is made.
        key: the consumer's heartbeat key.
        interval_ms: time between two beats; the key expires after `MISSED_BEATS` of them.
        on_beat: called from the thread after every beat, with the connection's client.
        vitals_key: where the consumer tells of its work; empty for nowhere.
        vitals: what it tells, asked for after every beat.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str,
        interval_ms: int,
        on_beat: Callable[[Redis], None] = lambda client: None,
        *,
        vitals_key: str = "",
        vitals: Callable[[], Vitals] = Vitals,
    ) -> None:
        self._key = key
        self._vitals_key = vitals_key
        self._vitals = vitals
        self._vitals_refused = False
        self._interval_ms = interval_ms
        self._lasts_ms = interval_ms * MISSED_BEATS
        self._on_beat = on_beat
        self._where = str(endpoint)
        # a beat that hangs for longer than the key lives would be death: better a new connection
        self._client = endpoint.connect(timeout_seconds=max(interval_ms / 1000, SHORTEST_TIMEOUT_SECONDS))
        self.token = os.urandom(8).hex()
        """What tells this process from others that have or had the name."""
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token}
        self._value = json.dumps(mine | {"since": now_ms()}).encode()
        self.holder: Mapping[str, Any] = {}
        """Who has the name when it is not ours: host and pid."""
        self.held = False
        """Whether the last beat took or kept the name. While it is not ours, every beat tries to take it."""
        self._beaten_at = float("-inf")
        self._beating = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="imsync-heartbeat", daemon=True)

    def start(self) -> None:
        """Beats once, then goes on in the background. See `held` for whether the name was free.

        Raises:
            RedisUnreachable, RedisRefused: the first beat failed.
        """
        self._beat()
        self._thread.start()

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the thread and removes the key if it is ours: the consumer has left."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if self._guarded(lambda pipeline: pipeline.delete(self._key)) and self._vitals_key:
                with translated(self._where):
                    self._client.delete(self._vitals_key)
        except InfrastructureError as error:
            log.debug("heartbeat not removed, it will expire: %s", error)
        self._client.close()

    def ensure(self) -> bool:
        """Whether the name is ours. Beats at once when the last beat was long ago: because beats fail, which is trouble
        that nobody has reported yet, or because this process was stopped.

        Raises:
            RedisUnreachable, RedisRefused: nobody knows.
        """
        lapsed = time.monotonic() > self._beaten_at + self._lasts_ms / 1000
        # one that is under way already is merely slow
        if lapsed and self._beating.acquire(blocking=False):
            self._beating.release()
            self._beat()
        return self.held

    def _beat(self) -> None:
        with self._beating:
            self.held = self._renew() or self._guarded(
                lambda pipeline: pipeline.set(self._key, self._value, px=self._lasts_ms)
            )
            self._beaten_at = time.monotonic()

    def _renew(self) -> bool:
        """Makes the key last, if it is ours; whether it was. By PEXPIRE alone, which a server at `maxmemory` takes: it
        refuses SET, and in a MULTI everything.
        """
        with translated(self._where):
            if self._client.get(self._key) != self._value:
                return False
            pipeline = self._client.pipeline(transaction=False)
            pipeline.pexpire(self._key, self._lasts_ms)
            pipeline.get(self._key)  # it may have expired, and be somebody else's
            return bool(pipeline.execute()[1] == self._value)

    def _guarded(self, command: Callable[[Any], object]) -> bool:
        """Runs a command on the key unless it is somebody else's; whether it did."""
        pipeline: Any
        with translated(self._where), self._client.pipeline() as pipeline:
            while True:
                pipeline.watch(self._key)
                current = pipeline.get(self._key)
                if current not in (None, self._value):
                    self.holder = read_object(current)
                    return False
                pipeline.multi()
                command(pipeline)
                try:
                    pipeline.execute()
                except WatchError as error:  # taken, or expired, between the two: look again
                    if behind(error):
                        raise
                    continue
                return True

    def _tell(self) -> None:
        """Tells of the consumer's work, while the name is ours. A server at `maxmemory`, or one that does not grant the
        key, refuses at every beat: that is noted once.
        """
        if not (self._vitals_key and self.held):
            return
        try:
            with translated(self._where):
                self._client.set(self._vitals_key, self._vitals().encoded(), px=self._lasts_ms)
        except RedisRefused as error:
            if not self._vitals_refused:
                log.debug("the consumer cannot tell of its work: %s", error)
            self._vitals_refused = True
        else:
            self._vitals_refused = False

    def _run(self) -> None:
        while not self._stop.wait(self._interval_ms / 1000):
            try:
                self._beat()
                self._on_beat(self._client)
                self._tell()
            except InfrastructureError as error:
                log.debug("heartbeat missed: %s", error)  # the reading loop reports the same trouble loudly
            except Exception:
                log.exception("heartbeat missed")  # must not end the thread, and with it this consumer's life


@dataclass(frozen=True, slots=True)
class Life:
    """A consumer that has a heartbeat. What its process has not told, or nobody can read, is None.

    Args:
        host, pid: where it runs.
        since_ms: since when it has its name, in unix milliseconds, by its own clock.
        vitals: what it tells of its work.
    """

    host: str | None
    pid: int | None
    since_ms: int | None
    vitals: Vitals | None


def lives(client: Redis, keys: Keys, group: str, consumers: Sequence[str], where: str) -> dict[str, Life | None]:
    """For each consumer, what is known of its life; None for the dead. One round trip."""
    if not consumers:
        return {}
    pipeline = client.pipeline(transaction=False)
    for name in consumers:
        for key in (keys.alive(group, name), keys.vitals(group, name)):
            pipeline.get(key.encode(errors="surrogateescape"))
    with translated(where):
        replies = pipeline.execute(raise_on_error=False)
    return {name: _life(replies[2 * i], replies[2 * i + 1], where) for i, name in enumerate(consumers)}


def _life(heartbeat: object, vitals: object, where: str) -> Life | None:
    """The vitals may be unreadable, as they may be absent; who lives must be known."""
    if heartbeat is None:
        return None
    if isinstance(heartbeat, RedisError) and not str(heartbeat).startswith("WRONGTYPE"):
        raise as_imsync_error(heartbeat, where)
    told = read_object(heartbeat if isinstance(heartbeat, bytes) else None)
    work = Vitals.decoded(vitals) if isinstance(vitals, bytes) else None
    return Life(name_in(told.get("host")), number_in(told.get("pid")), number_in(told.get("since")), work)


def remaining_ms(client: Redis, keys: Keys, group: str, consumers: Iterable[str], where: str) -> Mapping[str, int]:
    """For each consumer, how long until its heartbeat expires; 0 for the dead."""
    names = list(consumers)
    if not names:
        return {}
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(keys.alive(group, name).encode(errors="surrogateescape"))
    with translated(where):
        return {name: max(0, left) for name, left in zip(names, pipeline.execute(), strict=True)}
