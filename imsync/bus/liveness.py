"""Who is alive: each consumer keeps an expiring key in Redis, set before it reads its first entry.

A consumer that is killed leaves entries pending under its name; when its key has expired, the living take
them over without waiting for a long idle time.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from imsync.bus.connection import Endpoint, translated
from imsync.bus.keys import Keys
from imsync.errors import InfrastructureError

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
    """

    def __init__(self, endpoint: Endpoint, key: str, interval_ms: int) -> None:
        self._key = key
        self._interval_ms = interval_ms
        self._where = str(endpoint)
        # a beat that hangs for longer than the key lives would be death: better a new connection
        self._client = endpoint.connect(timeout_seconds=max(interval_ms / 1000, SHORTEST_TIMEOUT_SECONDS))
        self._value = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="imsync-heartbeat", daemon=True)

    def start(self) -> None:
        """Beats once, then goes on in the background.

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
        """Ends the thread and removes the key: the consumer has left."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            with translated(self._where):
                self._client.delete(self._key)
        except InfrastructureError as error:
            log.debug("heartbeat not removed, it will expire: %s", error)
        self._client.close()

    def _beat(self) -> None:
        with translated(self._where):
            self._client.set(self._key, self._value, px=self._interval_ms * MISSED_BEATS)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_ms / 1000):
            try:
                self._beat()
            except InfrastructureError as error:
                log.debug("heartbeat missed: %s", error)  # the reading loop reports the same trouble loudly
            except Exception:
                log.exception("heartbeat missed")  # must not end the thread, and with it this consumer's life


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
