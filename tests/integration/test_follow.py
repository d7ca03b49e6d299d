"""Following a stream for no group: in order, from a place to a place, across the server's restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.connection import Endpoint
from imsync.bus.entry import Entry, id_after, id_before, id_parts
from imsync.bus.follow import BLOCK_MS, PAGE, Interrupted, Resumed, follow
from imsync.bus.retention import NO_LIMIT
from imsync.bus.retry import Backoff
from imsync.bus.stream import Stream
from imsync.errors import RedisRefused, RedisUnreachable
from tests.servers import Server, StartServer, eventually

KEY = "imsync:{follow}:stream"
QUICK = Backoff(first_seconds=0.01, longest_seconds=0.02)

Connect = Callable[[Server], Stream]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as clients:
        yield lambda server: Stream(
            clients.enter_context(closing(Endpoint(server.url).connect(block_ms=BLOCK_MS))), KEY
        )


@pytest.fixture
def stream(any_server: Server, connect: Connect) -> Stream:
    return connect(any_server)


def ids(pages: Iterator[list[Entry]]) -> list[str]:
    found = []
    for page in pages:
        assert page, "no page is empty"
        found += [entry.id for entry in page]
    return found


def test_from_a_place_to_a_place(stream: Stream) -> None:
    written = [id for id in stream.append_many([b"x"] * (2 * PAGE + 1)) if isinstance(id, str)]
    assert ids(follow(stream, "0-0", wait=False)) == written
    assert ids(follow(stream, written[3], end=written[PAGE + 5], wait=False)) == written[3 : PAGE + 6]
    assert ids(follow(stream, written[-1], wait=False)) == written[-1:]
    assert ids(follow(stream, id_after(written[-1]), wait=False)) == []
    assert ids(follow(stream, written[5], end=written[4], wait=False)) == []


def test_an_end_in_the_future_is_waited_for(stream: Stream) -> None:
    stream.append(b"x")
    now_ms = stream.server_time_ms()
    end = f"{now_ms + 50}-{2**64 - 1}"
    assert len(ids(follow(stream, "0-0", end=end))) == 1  # ends, though nothing comes any more
    assert stream.server_time_ms() > now_ms + 50


class Following:
    """Follows in a thread of its own. `closed` by what comes last."""

    def __init__(self, stream: Stream, start: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self.seen: list[bytes | None] = []
        self.trouble: list[Interrupted | Resumed] = []
        self._pages = follow(stream, start, on_trouble=self.trouble.append, backoff=QUICK, sleep=sleep)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for page in self._pages:
            self.seen += [entry.body for entry in page]
            if self.seen[-1] == b"end":
                return

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_server_that_goes_away_and_comes_back(any_kind: str, start_server: StartServer, connect: Connect) -> None:
    server = start_server(any_kind, appendonly=True)
    writer = connect(server)
    writer.append(b"1")
    following = Following(connect(server), "0-0")
    eventually(lambda: following.seen == [b"1"])
    server.kill()
    eventually(lambda: following.trouble)
    server.start()
    last = connect(server).append(b"end")
    following.join()
    assert following.seen == [b"1", b"end"]
    lost, back = following.trouble
    assert isinstance(lost, Interrupted)
    assert isinstance(back, Resumed)
    assert back.after is not None
    assert id_parts(back.after) < id_parts(last)


@pytest.mark.parametrize("written", ["before it is back", "afterwards"])
def test_a_stream_that_was_made_anew_is_read_from_its_start(
    start_server: StartServer, connect: Connect, written: str
) -> None:
    """Its ids may be lower than those that were read: the server's clock was ahead."""
    server = start_server()  # keeps nothing
    with server.client() as client:
        client.xadd(KEY, {"event": "1"}, id=f"{2**63}-0")
    may_connect = threading.Event()
    following = Following(connect(server), "0-0", lambda seconds: may_connect.wait(10))
    eventually(lambda: following.seen == [b"1"])
    server.kill()
    eventually(lambda: following.trouble)
    server.start()
    if written == "afterwards":
        may_connect.set()
        eventually(lambda: len(following.trouble) == 2)
    with server.client() as client:
        client.xadd(KEY, {"event": "2"}, id="5-0")
    may_connect.set()
    eventually(lambda: len(following.seen) == 2)
    connect(server).append(b"end")
    following.join()
    assert following.seen == [b"1", b"2", b"end"]
    assert following.trouble[1:] == [Resumed(None)]


def test_who_waits_for_an_end_is_told(start_server: StartServer, connect: Connect) -> None:
    server = start_server()
    stream = connect(server)
    server.kill()
    with pytest.raises(RedisUnreachable):
        ids(follow(stream, "0-0", wait=False))


def test_a_refusal_is_told(server: Server, connect: Connect) -> None:
    with server.client() as client:
        client.set(KEY, "no stream")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        ids(follow(connect(server), "0-0"))


@given(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
def test_the_id_before_is_the_one_before(parts: tuple[int, int]) -> None:
    entry_id = "{}-{}".format(*parts)
    if entry_id != "0-0":
        assert id_after(id_before(entry_id)) == entry_id
    assert id_before("0-0") == "0-0"
    assert id_before("7-0") == f"6-{2**64 - 1}"
    assert id_parts(id_before(entry_id)) < id_parts(NO_LIMIT)
