"""Traffic while a server is being broken: who works, how far they have come, and what the server's file says of it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.evidence import STREAM, load_source, load_stream, rows
from tests.faults.nursery import Worker
from tests.faults.resp import arguments, message_end
from tests.faults.rig import World
from tests.faults.table import Row
from tests.servers import Server, eventually

REDIS_7 = pytest.param("redis-7.0", marks=pytest.mark.redis_server)
IMPATIENT = "?socket_timeout=0.3"
"""After a URL: how long its clients wait for an answer, instead of five seconds and more."""


class Traffic:
    """A producer, a relay and a consumer of each group, at work until `stop`.

    Args:
        impatient: they do not wait for long for an answer of Redis.
        options: of the consumers.
    """

    def __init__(self, world: World, *, impatient: bool = False, **options: Any) -> None:
        self._world = world
        url = world.url + (IMPATIENT if impatient else "")
        self.relay = world.relay(batch=10, url=url)
        self.consumers = [world.consumer(each, url=url, options={"batch": 5} | options) for each in world.services]
        self.producer = world.producer(count=None, pause_seconds=0.02)

    @property
    def readers(self) -> list[Worker]:
        """Those that talk to Redis."""
        return [self.relay, *self.consumers]

    def progress(self, events: int = 15) -> None:
        """Waits until every group has settled so many more events."""
        before = settled(self._world)
        self._world.expect(
            lambda: all(now - then >= events for now, then in zip(settled(self._world), before, strict=True)),
            f"{events} more events settled by each service",
        )

    def say(self, text: str, *workers: Worker, times: int = 1) -> None:
        """Waits until these workers, or all that talk to Redis, say something so often more."""
        said = {worker: worker.log.count(text) for worker in workers or self.readers}
        eventually(lambda: all(worker.log.count(text) >= n + times for worker, n in said.items()))

    def stop(self) -> None:
        """Ends the producer, and waits until everything that was sent is in the stream. The others go on."""
        self.producer.terminate()
        self.producer.finish()
        sent_again(self._world)

    def finish(self, *rows: Row) -> None:
        """Everything is healed: those who have survived bring it to rest, and nothing may be wrong."""
        self.stop()
        self._world.settle(by_living=True)
        violations = self._world.check()
        for row in rows:
            row.found(violations)


def settled(world: World) -> list[int]:
    """How many events each service has settled."""
    return [
        rows(world.stores / f"{each}.db", "SELECT count(*) FROM settled")[0][0]
        for each in world.services
    ]  # fmt: skip


def sent_again(world: World) -> None:
    """Waits until the stream holds everything that was sent: what it has lost was sent again."""

    def missing() -> int:
        outbox, stream = load_source(world.stores / "user.db").outbox, load_stream(world.client)
        return sum(not event.sent or stream.get(event.entry_id or "") != event.event_id for event in outbox)

    world.expect(lambda: missing() == 0, "the stream holds everything that was sent")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ── the server's file ────────────────────────────────────────────────────────────────────────────────


def append_only_file(server: Server) -> Path:
    """Where a server writes its commands; it must not rewrite them (`auto_aof_rewrite_percentage=0`).

    https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/
    """
    (path,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    return path


def commands(log: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The whole commands in an append-only file, and where each ends."""
    at = 0
    while at < len(log) and (end := message_end(log, at)) is not None:
        yield end, arguments(log[at:end])
        at = end


def entry_id_of(words: list[bytes]) -> bytes:
    """The entry id in an XADD as a server writes it down."""
    return next(word for word in words[1:] if word[:1].isdigit())


def lose_power(server: Server, synced: int) -> Counter[str]:
    """Kills a server, and cuts its file to the bytes that its disk has.

    Returns:
        What that has undone: `entries` of the stream, `acknowledgements` of entries that are still there, `groups`
        that were created, `bindings` of stores.
    """
    server.kill()
    path = append_only_file(server)
    kept: set[bytes] = set()
    undone: Counter[str] = Counter()
    for end, (name, *words) in commands(path.read_bytes()):
        if name == b"XADD" and words[0] == STREAM.encode():
            if end <= synced:
                kept.add(entry_id_of(words))
            else:
                undone["entries"] += 1
        elif end > synced:
            undone["acknowledgements"] += len(kept.intersection(words[2:])) if name == b"XACK" else 0
            undone["groups"] += name == b"XGROUP" and words[0].upper() == b"CREATE"
            undone["bindings"] += name == b"ZADD"
    os.truncate(path, synced)
    return undone
