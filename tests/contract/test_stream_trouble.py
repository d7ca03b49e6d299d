"""What `Stream` makes of trouble, on every kind of real server: one error each, and nothing sent twice."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from redis import exceptions as redis_errors

from imsync.bus import connection
from imsync.bus.connection import Endpoint, as_imsync_error
from imsync.bus.entry import Letter
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing, ImsyncError, RedisRefused, RedisUnreachable
from tests.contract.conftest import KEY, Backend, backend_on
from tests.servers import LossyProxy, Server, StartServer, eventually

GROUP = "billing"
NOTED = "contract:{orders}:store:billing"
DEAD = "contract:{orders}:dead:billing"
LONG_MS = 20_000
MOST_AT_ONCE = 10_000
"""The largest batch that the settings allow."""
HOSTILE = b"\x1b[31mred) of pipeline caused error: NOGROUP"

Connect = Callable[..., Stream]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A stream at an endpoint."""
    with ExitStack() as clients:

        def at(url: str, username: str = "", password: str = "") -> Stream:
            client = Endpoint(url, username, password).connect(block_ms=LONG_MS)
            return Stream(clients.enter_context(closing(client)), KEY)

        yield at


@pytest.fixture
def own_server(any_kind: str, start_server: StartServer) -> Server:
    """A server of each kind in turn, to kill and to configure."""
    return start_server(any_kind)


@pytest.fixture
def backend(own_server: Server) -> Iterator[Backend]:
    with closing(backend_on(own_server)) as backend:
        yield backend


class BlockedReader:
    """A consumer that waits for entries in a thread of its own, and what came of it."""

    def __init__(self, backend: Backend) -> None:
        self.result: object = "still waiting"
        self._stream = backend.stream(block_ms=LONG_MS)
        self._control = backend.client()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        eventually(self.is_blocked)

    def is_blocked(self) -> bool:
        return bool(self._control.info("clients")["blocked_clients"])

    def time_out(self) -> None:
        """Ends the wait as if its time were over."""
        (reader,) = (row["id"] for row in self._control.client_list() if "b" in row["flags"])
        self._control.client_unblock(reader)

    def wait(self) -> object:
        self._thread.join(10)
        return self.result

    def _read(self) -> None:
        try:
            self.result = self._stream.read_new(GROUP, "ann", 9, block_ms=LONG_MS)
        except ImsyncError as error:
            self.result = type(error)


# --- groups and streams that go away


def test_a_group_deleted_under_a_blocked_reader(real_backend: Backend) -> None:
    stream = real_backend.stream()
    stream.create_group(GROUP)
    reader = BlockedReader(real_backend)
    real_backend.client().xgroup_destroy(KEY, GROUP)
    assert reader.wait() is GroupMissing


@pytest.mark.parametrize("how", ["DEL", "UNLINK", "FLUSHALL", "RENAME"])
def test_a_stream_deleted_under_a_blocked_reader(real_backend: Backend, how: str) -> None:
    stream = real_backend.stream()
    stream.create_group(GROUP)
    reader = BlockedReader(real_backend)
    arguments = {"FLUSHALL": [], "RENAME": [KEY, "elsewhere"]}.get(how, [KEY])
    real_backend.client().execute_command(how, *arguments)
    if real_backend.features.wakes_when_stream_goes:
        assert reader.wait() is GroupMissing
    else:
        assert reader.is_blocked()
        reader.time_out()
        assert reader.wait() == []
    with pytest.raises(GroupMissing):
        stream.read_new(GROUP, "ann", 9, block_ms=LONG_MS)


# --- servers that refuse


def fill_up(backend: Backend, spare: int) -> None:
    """Leaves the server so many bytes of memory."""
    client = backend.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] + spare))


def test_of_many_events_the_one_that_does_not_fit_is_refused(backend: Backend) -> None:
    stream = backend.stream()
    stream.create_group(GROUP)
    big = 8_000_000
    fill_up(backend, big * 3 // 2)  # an event is in memory twice while it arrives
    first, refusal, third = stream.append_many([b"good", b"x" * big, b"good too"])
    assert isinstance(refusal, RedisRefused)
    assert (refusal.kind, "free memory" in refusal.hint) == ("redis_refused", True)
    assert [(entry.id, entry.body) for entry in stream.range()] == [(first, b"good"), (third, b"good too")]


def test_what_is_noted_is_noted_although_memory_is_full(backend: Backend) -> None:
    """And nothing is acknowledged without it."""
    stream, client = backend.stream(), backend.client()
    stream.create_group(GROUP)
    ids = [str(each) for each in stream.append_many([b"body"] * MOST_AT_ONCE)]
    stream.read_new(GROUP, "ann", MOST_AT_ONCE)
    client.zadd(NOTED, {"store": 1})
    client.config_set("maxmemory", 1)
    with pytest.raises(redis_errors.OutOfMemoryError):
        client.zadd(NOTED, {"store": 5})
    acknowledged = stream.begin_acknowledge(GROUP, ids[:-1], noting=("ZADD", NOTED, "XX", "GT", 7, "store")).finish()
    assert acknowledged == MOST_AT_ONCE - 1
    assert client.zrange(NOTED, 0, -1, withscores=True) == [(b"store", 7)]
    assert [pending.id for pending in stream.pending(GROUP, count=9)] == ids[-1:]
    client.config_set("maxmemory", 0)


def test_who_may_not_run_scripts_waits_for_memory(own_server: Server, backend: Backend, connect: Connect) -> None:
    stream, client = backend.stream(), backend.client()
    stream.create_group(GROUP)
    ids = [stream.append(b"body")]
    stream.read_new(GROUP, "ann", 1)
    client.zadd(NOTED, {"store": 1})
    client.execute_command(
        "ACL", "SETUSER", "consumer", "on", ">x", f"~{KEY}", f"~{NOTED}", "+xack", "+zadd", "+multi", "+exec"
    )
    mine = connect(own_server.url, username="consumer", password="x")
    noting = ("ZADD", NOTED, "XX", "GT", 7, "store")
    client.config_set("maxmemory", 1)
    with pytest.raises(RedisRefused) as refused:
        mine.begin_acknowledge(GROUP, ids, noting=noting).finish()
    assert "free memory" in refused.value.hint, "the memory is what is missing, not the permission"
    client.config_set("maxmemory", 0)
    assert mine.begin_acknowledge(GROUP, ids, noting=noting).finish() == 1


def test_nothing_is_acknowledged_when_the_other_command_is_refused(backend: Backend) -> None:
    stream, client = backend.stream(), backend.client()
    stream.create_group(GROUP)
    ids = [stream.append(b"body") for _ in range(2)]
    stream.read_new(GROUP, "ann", 2)
    with pytest.raises(RedisRefused):
        stream.begin_acknowledge(GROUP, ids, noting=("NOSUCHCOMMAND", NOTED, 7)).finish()
    assert [pending.id for pending in stream.pending(GROUP, count=9)] == ids
    assert not client.exists(NOTED)


def test_what_cannot_be_buried_stays_pending(backend: Backend) -> None:
    stream = backend.stream()
    stream.create_group(GROUP)
    source = stream.append(HOSTILE)
    (entry,) = stream.read_new(GROUP, "ann", 1)
    fill_up(backend, -1_000_000_000)
    with pytest.raises(RedisRefused) as raised:
        stream.bury(GROUP, "ann", DEAD, [Letter(source, {HOSTILE: HOSTILE})])
    assert "free memory" in raised.value.hint
    assert "\x1b" not in raised.value.message, "no message shows what an event holds"
    assert [pending.id for pending in stream.pending(GROUP, count=9)] == [source]
    backend.client().config_set("maxmemory", 0)
    assert backend.stream(DEAD).length() == 0
    assert stream.bury(GROUP, "ann", DEAD, [Letter(source, entry.fields)])
    assert (backend.stream(DEAD).length(), stream.pending_summary(GROUP).count) == (1, 0)


def test_a_stranger_is_refused_and_so_is_what_a_user_may_not(
    own_server: Server, backend: Backend, connect: Connect
) -> None:
    stream, url = backend.stream(), own_server.url
    stream.create_group(GROUP)
    user = ["on", ">right", f"~{KEY}", "+xadd", "+xack", "+multi", "+exec"]
    backend.client().execute_command("ACL", "SETUSER", "producer", *user)
    backend.client().config_set("requirepass", "secret")
    for login in ({}, {"password": "wrong"}, {"username": "producer", "password": "wrong"}):
        with pytest.raises(RedisRefused, match="refuses access") as raised:
            connect(url, **login).append(b"x")
        assert "wrong" not in raised.value.message
        assert "IMSYNC_PASSWORD" in raised.value.hint
    mine = connect(url, username="producer", password="right")
    mine.append(b"x")
    for forbidden in (
        lambda: mine.length(),
        lambda: mine.create_group("mine"),
        lambda: mine.bury(GROUP, "c", DEAD, [Letter("1-1", {HOSTILE: HOSTILE})]),
        lambda: Stream(mine._client, "elsewhere").append(b"x"),
    ):
        with pytest.raises(RedisRefused, match="refuses access") as raised:
            forbidden()
        assert "\x1b" not in raised.value.message
    (refusal,) = Stream(mine._client, "elsewhere").append_many([b"x"])
    assert isinstance(refusal, RedisRefused)
    assert stream.length() == 1


def test_a_key_of_another_type_is_refused(real_backend: Backend) -> None:
    real_backend.client().set(KEY, "not a stream")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        real_backend.stream().append(b"x")


# --- servers that do not answer


def test_a_killed_server_is_unreachable_until_it_is_back(
    any_kind: str, start_server: StartServer, connect: Connect
) -> None:
    server = start_server(any_kind, appendonly=True)
    with closing(backend_on(server)) as backend:
        stream = connect(server.url)
        stream.create_group(GROUP)
        reader = BlockedReader(backend)
        server.kill()
        assert reader.wait() is RedisUnreachable
    for command in (lambda: stream.append(b"x"), lambda: stream.append_many([b"x"]), stream.info):
        with pytest.raises(RedisUnreachable, match="cannot reach Redis"):
            command()
    server.start()
    entry_id = stream.append(b"back")
    assert [entry.id for entry in stream.read_new(GROUP, "ann", 9)] == [entry_id]


def test_a_frozen_server_is_unreachable(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_MARGIN_SECONDS", 0.2)
    with closing(backend_on(own_server)) as backend:
        stream = backend.stream(block_ms=100)
        stream.create_group(GROUP)
        assert stream.read_new(GROUP, "ann", 1, block_ms=100) == [], "a wait is no trouble"
        own_server.freeze()
        with pytest.raises(RedisUnreachable):
            stream.read_new(GROUP, "ann", 1, block_ms=100)


def test_a_server_that_is_loading_is_not_there_yet(own_server: Server, connect: Connect) -> None:
    with closing(own_server.client()) as client:
        for number in range(20):
            client.set(f"ballast {number}", os.urandom(1_000_000))
        client.save()
    own_server.kill()
    own_server.start(wait=False, key_load_delay=50_000)  # microseconds per key
    stream = connect(own_server.url)

    def is_loading() -> bool:
        with pytest.raises(RedisUnreachable) as raised:
            stream.append(b"x")
        return "is loading its data" in raised.value.message

    eventually(is_loading)


# --- replies that are lost


@pytest.fixture
def proxy(any_server: Server, lossy: Callable[[Server], LossyProxy]) -> LossyProxy:
    return lossy(any_server)


@pytest.mark.parametrize("many", [False, True])
def test_a_lost_reply_never_makes_the_client_write_twice(proxy: LossyProxy, connect: Connect, many: bool) -> None:
    stream = connect(proxy.url)
    proxy.lose_reply_to(b"XADD")
    with pytest.raises(RedisUnreachable):
        stream.append_many([b"a", b"b"]) if many else stream.append(b"a")
    assert proxy.lost == 1
    assert [entry.body for entry in stream.range()] == ([b"a", b"b"] if many else [b"a"])
    assert sum(b"XADD" in request for request in proxy.requests) == 1


def test_a_lost_reply_of_a_burial_buries_once(proxy: LossyProxy, connect: Connect) -> None:
    stream = connect(proxy.url)
    stream.create_group(GROUP)
    source = stream.append(b"bad")
    stream.read_new(GROUP, "ann", 1)
    proxy.lose_reply_to(b"EXEC")
    with pytest.raises(RedisUnreachable):
        stream.bury(GROUP, "ann", DEAD, [Letter(source, {b"reason": b"bad"})])
    assert Stream(stream._client, DEAD).length() == 1
    assert stream.pending_summary(GROUP).count == 0


def test_entries_of_a_lost_reply_are_the_reader_s_own(proxy: LossyProxy, connect: Connect) -> None:
    stream = connect(proxy.url)
    stream.create_group(GROUP)
    entry_id = stream.append(b"x")
    proxy.lose_reply_to(b"XREADGROUP")
    with pytest.raises(RedisUnreachable):
        stream.read_new(GROUP, "ann", 9)
    assert stream.read_new(GROUP, "ann", 9) == []
    assert [entry.id for entry in stream.read_own(GROUP, "ann", "0", 9)] == [entry_id]


# --- the names of errors


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (redis_errors.ConnectionError("Connection refused"), RedisUnreachable, "Connection refused"),
        (redis_errors.TimeoutError(), RedisUnreachable, "TimeoutError"),
        (redis_errors.BusyLoadingError("Redis is loading"), RedisUnreachable, "is loading its data"),
        (redis_errors.AuthenticationError("WRONGPASS"), RedisRefused, "refuses access"),
        (redis_errors.NoPermissionError("no permissions"), RedisRefused, "refuses access"),
        (redis_errors.ReadOnlyError("read only replica"), RedisRefused, "read only replica"),
        (redis_errors.ResponseError("UNBLOCKED the stream key no longer exists"), GroupMissing, "no such"),
        (redis_errors.ResponseError("two\nlines\x00"), RedisRefused, "two lines"),
    ],
)
def test_every_error_has_one_name(error: redis_errors.RedisError, expected: type[ImsyncError], text: str) -> None:
    translated = as_imsync_error(error, "redis://host")
    assert type(translated) is expected
    assert text in translated.message
    assert "redis://host" in translated.message
    assert "\n" not in translated.message


def test_an_entry_stays_pending_when_the_dead_letters_key_is_something_else(real_backend: Backend) -> None:
    stream = real_backend.stream()
    stream.create_group(GROUP)
    source = stream.append(b"body")
    stream.read_new(GROUP, "c", 1)
    real_backend.client().set(DEAD, "not a stream")
    with pytest.raises(RedisRefused, match="is a string, not a stream"):
        stream.bury(GROUP, "c", DEAD, [Letter(source, {b"raw.event": b"body"})])
    assert [each.id for each in stream.pending(GROUP, count=10)] == [source]
