"""What a server loses is sent again: whatever was lost and whenever, all events stand in the stream in the end."""

from __future__ import annotations

import logging
import random
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from imsync.bus.bus import Bus
from imsync.bus.connection import Endpoint
from imsync.bus.entry import Entry
from imsync.bus.publisher import Publisher
from imsync.bus.retry import Backoff
from imsync.bus.stream import Stream
from imsync.errors import ImsyncError, InfrastructureError, RedisRefused, RedisUnreachable
from imsync.im import loss
from imsync.im.events import DESTINATION
from imsync.im.relay import Relay
from imsync.im.user_store import ProfileEdit, UserStore
from tests.acceptance.driver import free_port
from tests.servers import LossyProxy, Server, StartServer, eventually
from tests.stores import PEOPLE, nick, sql

QUICK = Backoff(first_seconds=0.005, longest_seconds=0.02)
ALL = 2**62
HOUR_MS = 3_600_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UserStore]:
    with closing(UserStore(tmp_path / "user.db", create=True)) as made:
        made.bootstrap(PEOPLE, origin="test")
        yield made


class Disturbed(Stream):
    """A stream to which something happens before, within and after its commands.

    Args:
        happens: called with the moment (`look`, `looked`, `send`, `half`, `sent`) and how often it came.
    """

    def __init__(self, stream: Stream, happens: Callable[[str, int], object]) -> None:
        super().__init__(stream._client, stream.key, stream.where)
        self.happens = happens
        self.moments: defaultdict[str, int] = defaultdict(int)

    def range(self, start: str = "-", end: str = "+", count: int | None = None) -> list[Entry]:
        self._now("look")
        entries = super().range(start, end, count)
        self._now("looked")
        return entries

    def append_many(self, bodies: Any) -> list[str | ImsyncError]:
        self._now("send")
        half = (len(bodies) + 1) // 2
        results = super().append_many(bodies[:half])
        if bodies[half:]:
            self._now("half")
            results += super().append_many(bodies[half:])
        self._now("sent")
        return results

    def _now(self, moment: str) -> None:
        self.moments[moment] += 1
        self.happens(moment, self.moments[moment])


class Rig:
    """A relay, its stream, and what it said of losses."""

    def __init__(
        self,
        store: UserStore,
        url: str,
        happens: Callable[[str, int], object] = lambda moment, n: None,
        *,
        attempts: int = 2,
        **options: Any,
    ) -> None:
        self.store = store
        self.bus = Bus(Endpoint(url))
        self.stream = self.bus.stream(DESTINATION)
        self.disturbed = Disturbed(self.stream, happens)
        self.lost: list[int] = []
        publisher = Publisher(self.disturbed, store.source, attempts=attempts, backoff=QUICK)
        self.relay = Relay(store, publisher, on_lost=self.lost.append, **options)

    def deliver(self) -> int:
        """Publishes all that waits."""
        return self.relay.deliver(ALL)

    def a_second_passes(self) -> None:
        """An idle relay looks again."""
        self.relay._next_look = 0.0


@pytest.fixture
def rigged(store: UserStore) -> Iterator[Callable[..., Rig]]:
    """Makes rigs, and closes them."""
    with ExitStack() as stack:

        def rig(*arguments: Any, **options: Any) -> Rig:
            made = Rig(store, *arguments, **options)
            stack.callback(made.bus.close)
            return made

        yield rig


def edits(n: int, first: int = 0) -> list[ProfileEdit]:
    """That many edits of two users in turn, each a change."""
    return [ProfileEdit(user_id=i % 2 + 1, head_image=f"{first + i}") for i in range(n)]


def sent_rows(store: UserStore) -> int:
    return int(sql(store.path, "SELECT count(*) FROM outbox WHERE sent_ms IS NOT NULL")[0][0])


def assert_all_is_there(store: UserStore, stream: Stream) -> None:
    """Every event of the outbox is in the stream, each user's in their order; and the store's numbers say so."""
    entries = {entry.id: entry.body for entry in stream.range()}
    rows = sql(store.path, "SELECT seq, user_id, entry_id, body FROM outbox ORDER BY seq")
    for user_id in {row[1] for row in rows}:
        bodies = iter(entries.values())
        missing = [seq for seq, user, _, body in rows if user == user_id and body not in bodies]
        assert not missing, f"rows {missing} of user {user_id} are not in the stream, or not in their order"
    assert [seq for seq, _, entry_id, body in rows if entries.get(entry_id) != body] == []
    assert (store.published(), store.backlog().unsent) == (sent_rows(store), 0) == (len(rows), 0)


# ── what a server loses ──────────────────────────────────────────────────────────────────────────────


def test_a_server_that_comes_back_empty_gets_everything_again(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig], any_kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server = start_server(any_kind)
    rig = rigged(server.url, batch=7)
    store.edit_many(edits(25))
    assert rig.deliver() == 25
    assert (rig.lost, caplog.records) == ([], [])
    server.kill()
    server.start()
    rig.a_second_passes()
    with caplog.at_level(logging.ERROR, "imsync"):
        assert rig.deliver() == 25
    assert_all_is_there(store, rig.stream)
    assert rig.stream.length() == 25
    assert (rig.lost, rig.relay.resent, store.resent(), store.published()) == ([25], 25, 25, 25)
    (record,) = caplog.records
    assert "has lost events: the last 25 are sent again" in record.getMessage()
    assert rig.deliver() == 0
    assert store.resent() == 25


def appendonly_files(server: Server) -> list[Path]:
    """The append-only file: one file, or a folder since Redis 7."""
    found = [path for path in server.folder.iterdir() if path.name.startswith("appendonly")]
    assert found
    return found


def copy_of(path: Path, folder: Path) -> None:
    (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)


def crash_without_the_end(server: Server, kept: Path) -> None:
    """kill -9, and the append-only file as it was earlier."""
    server.kill()
    for path in appendonly_files(server):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in kept.iterdir():
        copy_of(path, server.folder)
    server.start()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def test_of_a_file_without_its_end_only_the_end_is_sent_again(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig], any_kind: str, kept: Path
) -> None:
    server = start_server(any_kind, appendonly=True)
    rig = rigged(server.url, batch=4)
    store.edit_many(edits(10))
    rig.deliver()
    for path in appendonly_files(server):
        copy_of(path, kept)
    store.edit_many(edits(11, first=10))
    rig.deliver()
    crash_without_the_end(server, kept)
    assert rig.stream.length() == 10
    store.edit(nick(1, "since"))
    assert rig.deliver() == 11 + 1
    assert_all_is_there(store, rig.stream)
    assert (rig.stream.length(), rig.lost, store.resent()) == (22, [11], 11)


@pytest.mark.parametrize("keep", range(12))
def test_whatever_part_is_left_what_is_missing_is_sent_again_and_no_more(
    store: UserStore, server: Server, rigged: Callable[..., Rig], keep: int
) -> None:
    rig = rigged(server.url, batch=5)
    store.edit_many(edits(12))
    rig.deliver()
    cut_back(server, rig.stream, keep)
    rig.a_second_passes()
    assert rig.deliver() == 12 - keep
    assert_all_is_there(store, rig.stream)
    assert (rig.stream.length(), store.resent()) == (12, 12 - keep)


def test_an_entry_id_that_was_given_twice_is_no_proof(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig], kept: Path
) -> None:
    """A server whose clock is behind its stream counts the last id up, and gives what it has lost to others."""
    server = start_server(appendonly=True)
    rig = rigged(server.url, batch=4)
    with server.client() as client:
        client.xadd(rig.stream.key, {"other": "1"}, id="9999999999999-0")
        store.edit_many(edits(5))
        rig.deliver()
        for path in appendonly_files(server):
            copy_of(path, kept)
        store.edit_many(edits(6, first=5))
        rig.deliver()
    crash_without_the_end(server, kept)
    with server.client() as client:
        others = [client.xadd(rig.stream.key, {"event": "somebody else's"}) for _ in range(8)]
        lost = sql(store.path, "SELECT entry_id FROM outbox WHERE seq > 5 ORDER BY seq")
        assert [entry_id for (entry_id,) in lost] == [other.decode() for other in others][:6]
        rig.a_second_passes()
        assert rig.deliver() == 6
        client.xdel(rig.stream.key, "9999999999999-0", *others)
    assert_all_is_there(store, rig.stream)
    assert store.resent() == 6


@pytest.mark.parametrize("command", ["FLUSHALL", "DEL", "XTRIM"])
def test_a_running_relay_notices_although_there_is_nothing_to_send(
    store: UserStore, server: Server, rigged: Callable[..., Rig], command: str
) -> None:
    rig = rigged(server.url)
    stop = threading.Event()
    lost: list[int] = []

    def run() -> None:
        with closing(UserStore(store.path)) as own:
            relay = Relay(own, Publisher(rig.stream, own.source), on_lost=lost.append, batch=3)
            relay.run(stop, poll_seconds=0.005, on_trouble=lambda *_: None)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        store.edit_many(edits(8))
        eventually(lambda: store.published() == 8)
        with server.client() as client:
            words = {"FLUSHALL": (), "DEL": (rig.stream.key,), "XTRIM": (rig.stream.key, "MAXLEN", "0")}
            client.execute_command(command, *words[command])
        eventually(lambda: lost == [8] and store.published() == 8)
    finally:
        stop.set()
        thread.join(10)
    assert_all_is_there(store, rig.stream)
    assert store.resent() == 8


# ── when it loses it ─────────────────────────────────────────────────────────────────────────────────

MOMENTS = [
    *((moment, n) for moment in ("send", "half", "sent") for n in (1, 2, 3, 4)),
    *((moment, n) for moment in ("look", "looked") for n in (1, 2, 3, 5, 8)),
]


@pytest.mark.parametrize(("moment", "n"), MOMENTS)
@pytest.mark.parametrize("again", [True, False], ids=["one_process", "the_next_process"])
def test_a_flush_at_any_moment_loses_nothing(
    store: UserStore, server: Server, rigged: Callable[..., Rig], moment: str, n: int, again: bool
) -> None:
    """Between two round trips, within one, between a look and a send: whenever it comes."""
    flushed: list[str] = []

    def happens(now: str, times: int) -> None:
        if (now, times) == (moment, n):
            with server.client() as client:
                client.flushall()
            flushed.append(now)

    rig = rigged(server.url, happens, batch=5)
    store.edit_many(edits(18))
    rig.deliver()
    if not again:  # the one that was there is gone, and has told nobody
        rig = rigged(server.url, happens, batch=5)
    store.edit_many(edits(5, first=18))
    rig.deliver()
    while not flushed:
        rig.deliver()
        rig.a_second_passes()
    rig = rigged(server.url, batch=5)
    rig.deliver()
    assert_all_is_there(store, rig.stream)


def test_the_server_that_comes_back_while_a_round_trip_is_tried_again_is_another_one(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig]
) -> None:
    """The connection breaks in the third round trip. Its repeat succeeds, on a server that lost the first two."""
    server = start_server()

    def happens(moment: str, n: int) -> None:
        if (moment, n) == ("half", 3):
            server.kill()
            server.start()

    rig = rigged(server.url, happens, batch=5, attempts=3)
    store.edit_many(edits(20))
    assert rig.deliver() == 20 + rig.relay.resent
    assert_all_is_there(store, rig.stream)
    assert rig.lost == [15]  # the third, too, so that its users' events stand in their order


def test_a_failover_to_a_replica_that_was_behind(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig]
) -> None:
    port = free_port()
    master = start_server(port=port, bind="127.0.0.1", repl_diskless_sync_delay=0)
    replica = start_server(port=free_port(), bind="127.0.0.1")
    service = master.folder / "service"
    service.symlink_to(master.socket)
    rig = rigged(f"unix://{service}", attempts=1, batch=10)
    stop = threading.Event()

    def run() -> None:
        with closing(UserStore(store.path)) as own:
            relay = Relay(own, Publisher(rig.stream, own.source, attempts=1), batch=10)
            relay.run(stop, poll_seconds=0.005, on_trouble=lambda *_: None, backoff=QUICK)

    with replica.client() as other:
        other.execute_command("REPLICAOF", "127.0.0.1", port)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            store.edit_many(edits(40))
            eventually(lambda: other.xlen(rig.stream.key) == 40)
            other.execute_command("REPLICAOF", "127.0.0.1", free_port())  # its link is down
            store.edit_many(edits(25, first=40))
            eventually(lambda: store.published() == 65)
            assert (master_length := rig.stream.length()) == 65
            master.kill()
            store.edit_many(edits(9, first=65))
            assert other.xlen(rig.stream.key) == 40 < master_length
            other.execute_command("REPLICAOF", "NO", "ONE")
            service.unlink()
            service.symlink_to(replica.socket)
            eventually(lambda: store.published() == 74 and not store.backlog().unsent)
        finally:
            stop.set()
            thread.join(10)
    assert_all_is_there(store, rig.stream)
    assert store.resent() == 25


# ── what is not sent again ───────────────────────────────────────────────────────────────────────────


class Later:
    """A clock that can be set on."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock(store: UserStore) -> Later:
    later = Later()
    store.clock_ms = later
    return later


def test_what_was_trimmed_in_its_time_is_not_missed(
    store: UserStore, server: Server, rigged: Callable[..., Rig], clock: Later
) -> None:
    """A trimmed stream remembers how far it came; a lost one does not."""
    rig = rigged(server.url, batch=4)
    store.edit_many(edits(10))
    rig.deliver()
    clock.ms += 24 * HOUR_MS
    with server.client() as client:
        client.xtrim(rig.stream.key, maxlen=1, approximate=False)
        rig.a_second_passes()
        assert rig.deliver() == 0
        client.xtrim(rig.stream.key, maxlen=0, approximate=False)
    rig.a_second_passes()
    assert rig.deliver() == 0
    store.edit_many(edits(3, first=10))
    assert rig.deliver() == 3
    assert (rig.lost, store.resent(), rig.stream.length()) == ([], 0, 3)
    with server.client() as client:
        client.xtrim(rig.stream.key, maxlen=0, approximate=False)
    assert rigged(server.url).deliver() == 3, "of two sorts of rows only the late ones"
    assert (store.resent(), rig.stream.length()) == (3, 3)


def test_what_was_trimmed_too_early_is_sent_again(
    store: UserStore, server: Server, rigged: Callable[..., Rig], clock: Later
) -> None:
    rig = rigged(server.url, batch=4)
    store.edit_many(edits(10))
    rig.deliver()
    clock.ms += 23 * HOUR_MS
    with server.client() as client:
        client.xtrim(rig.stream.key, maxlen=0, approximate=False)
    assert rigged(server.url).deliver() == 10
    assert_all_is_there(store, rig.stream)


def test_history_hours_say_how_long_entries_are_missed(
    store: UserStore, server: Server, rigged: Callable[..., Rig], clock: Later
) -> None:
    rig = rigged(server.url, history_hours=2.0)
    store.edit_many(edits(4))
    rig.deliver()
    clock.ms += 2 * HOUR_MS
    with server.client() as client:
        client.xtrim(rig.stream.key, maxlen=0, approximate=False)
    assert rigged(server.url, history_hours=2.0).deliver() == 0
    assert rigged(server.url, history_hours=3.0).deliver() == 4


def test_what_a_fresh_stream_cannot_have_trimmed_is_sent_again_however_old(
    store: UserStore, server: Server, rigged: Callable[..., Rig], clock: Later
) -> None:
    """Nobody consumed it for a month: retention kept it, and then the server came back empty."""
    rig = rigged(server.url, batch=4)
    store.edit_many(edits(10))
    rig.deliver()
    clock.ms += 30 * 24 * HOUR_MS
    with server.client() as client:
        client.flushall()
        rig.stream.create_group("group")
    assert rigged(server.url, batch=4).deliver() == 10
    assert_all_is_there(store, rig.stream)


@pytest.mark.parametrize("hours", [-100_000, -1, 100_000])
def test_a_clock_that_jumps_makes_nothing_old_nor_young(
    store: UserStore, server: Server, rigged: Callable[..., Rig], clock: Later, hours: int
) -> None:
    rig = rigged(server.url, batch=4)
    store.edit_many(edits(10))
    rig.deliver()
    clock.ms += hours * HOUR_MS
    assert rigged(server.url).deliver() == 0
    with server.client() as client:
        client.flushall()
    assert rigged(server.url).deliver() == 10
    assert_all_is_there(store, rig.stream)


def test_a_stream_that_keeps_losing_gets_no_more(store: UserStore, server: Server, rigged: Callable[..., Rig]) -> None:
    """Somebody deletes what comes in: it is said, and not sent for ever."""

    def happens(moment: str, n: int) -> None:
        if moment == "sent":
            with server.client() as client:
                client.delete(rig.stream.key)

    rig = rigged(server.url, happens, batch=5)
    store.edit_many(edits(12))
    with pytest.raises(RedisRefused, match="loses events as fast as they are sent") as raised:
        rig.deliver()
    assert "maxmemory-policy" in raised.value.hint
    assert (store.backlog().unsent, store.published()) == (12, 0)
    assert rig.disturbed.moments["sent"] < 10
    rig = rigged(server.url, batch=5)
    assert rig.deliver() == 12
    assert_all_is_there(store, rig.stream)


# ── being interrupted ────────────────────────────────────────────────────────────────────────────────


def test_told_to_stop_in_the_middle_it_leaves_the_rest_to_the_next(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url, batch=5)
    store.edit_many(edits(23))
    rig.deliver()
    with server.client() as client:
        client.flushall()
    stop = threading.Event()
    stopped = rigged(server.url, batch=5, on_sent=lambda n: stop.set())
    assert stopped.relay.deliver(ALL, stop=stop) == 5
    assert (store.published(), store.backlog().unsent, store.resent()) == (5, 18, 23)
    assert rigged(server.url, batch=5).deliver() == 18
    assert_all_is_there(store, rig.stream)
    assert rig.stream.length() == 23


class Died(BaseException):
    """The process is no more."""


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_walk_back_that_is_cut_short_goes_on_in_the_next_process(
    store: UserStore, server: Server, rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, nth: int, when: str
) -> None:
    """Also when the newest rows stand in the stream and only what is behind them is lost."""
    monkeypatch.setattr(loss, "CHUNK", 10)

    def happens(moment: str, n: int) -> None:
        if (moment, n) == ("send", 3):
            with server.client() as client:
                client.flushall()

    rig = rigged(server.url, happens, batch=15)
    take_back, calls = store.take_back, []

    def dying(first: int, below: int) -> int:
        calls.append(first)
        if len(calls) == nth and when == "before":
            raise Died
        taken = take_back(first, below)
        if len(calls) == nth:
            raise Died
        return taken

    store.edit_many(edits(45))
    with monkeypatch.context() as patch:
        patch.setattr(store, "take_back", dying)
        with pytest.raises(Died):
            rig.deliver()
    assert store.published() == sent_rows(store)
    rig = rigged(server.url, batch=15)
    rig.deliver()
    assert_all_is_there(store, rig.stream)


def test_while_the_connection_is_lost_in_the_walk_back_nothing_is_sent(
    store: UserStore, server: Server, lossy: Callable[[Server], LossyProxy], rigged: Callable[..., Rig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loss, "CHUNK", 10)
    proxy = lossy(server)
    rig = rigged(proxy.url, batch=15, attempts=1)
    store.edit_many(edits(45))
    rig.deliver()
    with server.client() as client:
        client.flushall()
    take_back = store.take_back

    def cut(first: int, below: int) -> int:
        proxy.lose_reply_to(b"XRANGE")
        return take_back(first, below)

    with monkeypatch.context() as patch:
        patch.setattr(store, "take_back", cut)
        rig.a_second_passes()
        with pytest.raises(RedisUnreachable):
            rig.deliver()
    assert (rig.lost, rig.relay.resent, store.resent(), rig.stream.length()) == ([10], 10, 10, 0)
    assert rig.deliver() == 45
    assert_all_is_there(store, rig.stream)
    assert rig.lost == [10, 35]


def test_a_look_is_tried_again_like_a_publication(
    store: UserStore, server: Server, lossy: Callable[[Server], LossyProxy], rigged: Callable[..., Rig]
) -> None:
    """A connection that was closed while it was idle is no reason to leave an edit in the outbox."""
    proxy = lossy(server)
    rig = rigged(proxy.url, attempts=2)
    store.edit(nick(1, "a"))
    rig.deliver()
    store.edit(nick(1, "b"))
    proxy.lose_reply_to(b"XRANGE")
    assert rig.deliver() == 1
    assert proxy.lost == 1


def test_two_relays_at_work_while_the_server_forgets(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    stop = threading.Event()

    def run(batch: int) -> None:
        with closing(UserStore(store.path)) as own, Bus(Endpoint(server.url)) as bus:
            relay = Relay(own, Publisher(bus.stream(DESTINATION), own.source), batch=batch)
            relay.run(stop, poll_seconds=0.001, on_trouble=lambda *_: None, backoff=QUICK)

    def deliver() -> None:
        with closing(UserStore(store.path)) as own, Bus(Endpoint(server.url)) as bus:
            while not stop.is_set():
                relay = Relay(own, Publisher(bus.stream(DESTINATION), own.source), batch=3)
                with suppress(ImsyncError):
                    relay.deliver(ALL, patience_seconds=0.0, stop=stop)

    threads = [threading.Thread(target=run, args=(7,)), threading.Thread(target=deliver)]
    for thread in threads:
        thread.start()
    try:
        with server.client() as client:
            for n in range(12):
                store.edit_many(edits(20, first=20 * n))
                if n % 3 == 2:
                    eventually(lambda: store.published())
                    client.flushall()
        eventually(lambda: not store.backlog().unsent)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    rig.deliver()
    assert_all_is_there(store, rig.stream)


def test_rows_that_were_refused_at_first_were_sent_last(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    """And so they are what a loss takes first, although their edits are older."""
    rig = rigged(server.url)
    store.edit_many(edits(12))
    rows = store.unsent(12)
    late = [row for row in rows if row.seq in (3, 5)]
    at_once = [row for row in rows if row not in late]
    for round_trip in (at_once, late):
        store.mark_sent([(row.seq, rig.stream.append(row.body)) for row in round_trip])
    cut_back(server, rig.stream, keep=10)
    assert rig.deliver() == 2
    assert [row[0] for row in sql(store.path, "SELECT seq FROM outbox ORDER BY place DESC LIMIT 2")] == [5, 3]
    assert {entry.body for entry in rig.stream.range()} == {row.body for row in rows}


def cut_back(server: Server, stream: Stream, keep: int) -> None:
    """Makes the stream one that never had more than its first entries."""
    entries = stream.range(count=keep) if keep else []
    with server.client() as client, client.pipeline() as pipe:
        pipe.delete(stream.key)
        for entry in entries:
            pipe.xadd(stream.key, dict(entry.fields), id=entry.id)
        pipe.execute()


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────


def test_a_look_is_a_round_trip_or_two(store: UserStore, server: Server, rigged: Callable[..., Rig]) -> None:
    rig = rigged(server.url, batch=10)
    store.edit_many(edits(100))
    rig.deliver()
    assert rig.disturbed.moments["send"] == 10
    assert rig.disturbed.moments["look"] <= 2 * 10
    rig.disturbed.moments.clear()
    store.edit(nick(1, "one"))
    rig.deliver()
    store.edit(nick(1, "two"))
    rig.deliver()
    assert rig.disturbed.moments["look"] <= 2 * 4
    assert rig.disturbed.moments["send"] == 2


def test_while_idle_it_looks_once_a_second(store: UserStore, server: Server, rigged: Callable[..., Rig]) -> None:
    seconds = [100.0]
    rig = rigged(server.url, batch=10, clock=lambda: seconds[0])
    store.edit_many(edits(3))
    rig.deliver()
    looks = rig.disturbed.moments["look"]
    for _ in range(50):
        rig.deliver()
    assert rig.disturbed.moments["look"] == looks
    seconds[0] += 1.0
    for _ in range(50):
        rig.deliver()
    assert rig.disturbed.moments["look"] - looks in (1, 2)


def test_at_once_an_edit_is_sent_before_anything_is_looked_for(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    moments: list[str] = []

    def happens(moment: str, n: int) -> None:
        if moment in ("send", "look") and moments[-1:] != [moment]:  # a look is a round trip or two
            moments.append(moment)

    rig = rigged(server.url, happens, batch=4, at_once=True)
    store.edit_many(edits(3))
    rig.deliver()
    moments.clear()
    store.edit(nick(1, "one"))
    rig.deliver()
    assert moments == ["send", "look"]
    moments.clear()
    store.edit_many(edits(8, first=9))
    rig.deliver()
    assert moments == ["send", "look", "send", "look"], "never two round trips without a look"


def test_at_once_what_was_lost_comes_behind_with_what_was_sent_meanwhile(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url, at_once=True)
    store.edit_many(edits(6))
    rig.deliver()
    cut_back(server, rig.stream, keep=4)
    store.edit(nick(1, "one"))
    assert rig.deliver() == 1 + 3
    assert rig.lost == [3]
    assert rig.stream.length() == 4 + 1 + 3
    assert_all_is_there(store, rig.stream)


@pytest.mark.parametrize("what", ["sends", "loses"])
def test_at_once_it_looks_first_where_another_relay_was_at_work(
    store: UserStore, server: Server, rigged: Callable[..., Rig], what: str
) -> None:
    moments: list[str] = []
    rig = rigged(server.url, lambda moment, n: moments.append(moment), at_once=True)
    store.edit_many(edits(6))
    rig.deliver()
    other = rigged(server.url)
    if what == "loses":
        cut_back(server, rig.stream, keep=2)
    else:
        store.edit(nick(2, "two"))
    other.deliver()
    moments.clear()
    store.edit(nick(1, "one"))
    rig.deliver()
    assert moments[0] == "look"
    assert_all_is_there(store, rig.stream)


def test_other_producers_entries_in_between_are_passed_over(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    def happens(moment: str, n: int) -> None:
        if moment == "half":
            with server.client() as client, client.pipeline() as pipe:
                for _ in range(30):
                    pipe.xadd(rig.stream.key, {"event": "somebody else's"})
                pipe.execute()

    rig = rigged(server.url, happens, batch=4)
    store.edit_many(edits(16))
    rig.deliver()
    assert rigged(server.url).deliver() == 0
    cut_back(server, rig.stream, keep=rig.stream.length() // 2)
    assert rigged(server.url).deliver() == 8


# ── any history ──────────────────────────────────────────────────────────────────────────────────────


class Fate:
    """What happens at the moments of a disturbed stream and of its store: at random, but for the seed.

    A loss takes any last part of the stream, or all; within a round trip it takes at least what came of that.
    """

    def __init__(self, rng: random.Random, server: Server, stream: Stream) -> None:
        self.rng = rng
        self.server = server
        self.stream = stream
        self.calm = False
        self.before_trip = 0
        self.log: list[str] = []

    def happens(self, moment: str, n: int) -> None:
        if moment == "send":
            self.before_trip = self.stream.length()
        if self.calm:
            return
        if self.rng.random() < 0.06:
            self.lose(moment)
        if self.rng.random() < 0.02:
            self.log.append(f"{moment} {n}: cut")
            raise RedisUnreachable("cut")
        if self.rng.random() < 0.02:
            self.log.append(f"{moment} {n}: died")
            raise Died

    def lose(self, moment: str) -> None:
        length = self.stream.length()
        most = self.before_trip if moment == "half" else length
        keep = 0 if self.rng.random() < 0.4 else self.rng.randrange(most + 1)
        self.log.append(f"{moment}: {length} entries, {keep} kept")
        cut_back(self.server, self.stream, keep)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("clock", ["ahead", "behind"])
def test_any_history_of_losses_ends_with_everything_in_the_stream(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, clock: str, at_once: bool
) -> None:
    """With a clock that is behind, the server gives lost ids again."""
    monkeypatch.setattr(loss, "CHUNK", 8)
    first_seed = random.SystemRandom().randrange(10**9)
    for seed in range(first_seed, first_seed + 25):
        rng = random.Random(seed)
        with closing(UserStore(tmp_path / f"{seed}.db", create=True)) as store, Bus(Endpoint(server.url)) as bus:
            store.bootstrap(PEOPLE, origin="test")
            stream = bus.stream(DESTINATION)
            fate = Fate(rng, server, stream)
            with server.client() as client:
                client.flushall()
                if clock == "behind":
                    client.xadd(stream.key, {"event": "a stranger's"}, id="9999999999999-0")
            live_through(rng, fate, store, stream, at_once)
            print(f"seed {seed}, {clock}:", *fate.log, sep="\n  ")
            assert_all_is_there(store, stream)


def live_through(rng: random.Random, fate: Fate, store: UserStore, stream: Stream, at_once: bool) -> None:
    """Edits and deliveries, by one process after the other, and a last delivery with nothing in its way."""

    def relay() -> Relay:
        disturbed = Disturbed(stream, fate.happens)
        publisher = Publisher(disturbed, store.source, attempts=2, sleep=lambda seconds: None)
        return Relay(store, publisher, batch=rng.randrange(1, 9), at_once=at_once, clock=lambda: rng.random() * 3)

    take_back, mark_sent = store.take_back, store.mark_sent

    def taken_back(first: int, below: int) -> int:
        fate.happens("take back", 0)
        taken = take_back(first, below)
        fate.happens("taken back", 0)
        return taken

    def marked(sent: Any) -> int:
        fate.happens("mark", 0)
        noted = mark_sent(sent)
        fate.happens("marked", 0)
        return noted

    store.take_back, store.mark_sent = taken_back, marked  # type: ignore[method-assign]
    worker = relay()
    for step in range(rng.randrange(4, 14)):
        store.edit_many(edits(rng.randrange(12), first=100 * step))
        try:
            worker.deliver(ALL)
        except InfrastructureError:
            pass
        except Died:
            worker = relay()
    fate.calm = True
    relay().deliver(ALL)
