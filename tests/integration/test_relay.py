"""The relay, on real servers: what was accepted is published, in order, whatever Redis and other relays do."""

from __future__ import annotations

import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from imsync.bus.bus import Bus
from imsync.bus.codec import Decoder
from imsync.bus.connection import Endpoint
from imsync.bus.publisher import Publisher
from imsync.bus.retry import Backoff
from imsync.bus.stream import Stream
from imsync.errors import ImsyncError, InfrastructureError, RedisRefused, RedisUnreachable, StoreUnusable
from imsync.im.events import DESTINATION, IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.relay import Order, Relay
from imsync.im.relay_lock import PAUSE
from imsync.im.user_store import OutboxRow, ProfileEdit, UserStore
from tests.servers import LossyProxy, Server, Spawn, StartServer, eventually
from tests.stores import PEOPLE, hear, latest_event, nick, outbox_events, sql

DECODER: Decoder[IMBaseEvent] = Decoder([UserUpdated, UserDeleted])
QUICK = Backoff(first_seconds=0.005, longest_seconds=0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UserStore]:
    with closing(UserStore(tmp_path / "user.db", create=True)) as made:
        made.bootstrap(PEOPLE, origin="test")
        yield made


class Rig:
    """A relay and its stream on one server."""

    def __init__(self, store: UserStore, url: str, *, batch: int = 1000, order: Order = lambda rows: rows) -> None:
        self.bus = Bus(Endpoint(url))
        self.stream = self.bus.stream(DESTINATION)
        self.sent: list[int] = []
        publisher = Publisher(self.stream, store.source, attempts=2, backoff=QUICK)
        self.relay = Relay(store, publisher, batch=batch, order=order, on_sent=self.sent.append)

    def events(self) -> list[IMBaseEvent]:
        """What the stream holds, in order."""
        events = [DECODER.decode(entry.body or b"") for entry in self.stream.range()]
        return [event for event in events if event is not None]

    def versions(self) -> dict[int, list[int]]:
        """By user: the versions in the order of the stream."""
        by_user: defaultdict[int, list[int]] = defaultdict(list)
        for event in self.events():
            by_user[event.id].append(event.version)
        return dict(by_user)


@pytest.fixture
def rigged(store: UserStore) -> Iterator[Callable[..., Rig]]:
    """Makes rigs, and closes them."""
    rigs: list[Rig] = []

    def rig(url: str, *, batch: int = 1000, order: Order = lambda rows: rows) -> Rig:
        rigs.append(Rig(store, url, batch=batch, order=order))
        return rigs[-1]

    yield rig
    for made in rigs:
        made.bus.close()


def edits(n: int, *, weight: int = 1) -> list[ProfileEdit]:
    """That many edits of two users in turn, each a change, with pictures of `weight` characters."""
    return [ProfileEdit(user_id=i % 2 + 1, head_image=f"{i}".zfill(weight)) for i in range(n)]


def entry_ids(store: UserStore) -> list[str | None]:
    """Of the outbox's rows, in their order."""
    return [entry_id for (entry_id,) in sql(store.path, "SELECT entry_id FROM outbox ORDER BY seq")]


# ── publishing ───────────────────────────────────────────────────────────────────────────────────────


def test_edits_are_published_in_their_order_and_keep_their_entry_ids(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url, batch=7)
    report = store.edit_many(edits(20))
    store.delete_user(2)
    assert rig.relay.deliver(report.last_seq) == 21
    assert rig.events() == outbox_events(store.path)
    assert rig.versions() == {1: list(range(2, 12)), 2: list(range(42, 53))}
    assert entry_ids(store) == [entry.id for entry in rig.stream.range()]
    assert (store.published(), store.backlog().unsent, rig.sent) == (21, 0, [7, 7, 7])
    assert latest_event(store, 1) == (11, entry_ids(store)[18])
    assert rig.relay.deliver(99) == 0
    assert rig.stream.length() == 21


def test_the_bytes_are_those_of_the_outbox(store: UserStore, server: Server, rigged: Callable[..., Rig]) -> None:
    rig = rigged(server.url)
    store.edit_many(edits(3))
    rig.relay.deliver(3)
    bodies = [body for (body,) in sql(store.path, "SELECT body FROM outbox ORDER BY seq")]
    assert [dict(entry.fields) for entry in rig.stream.range()] == [{b"event": body} for body in bodies]


def test_a_round_trip_may_be_rearranged_and_repeated(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    def disturbed(rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
        return [*reversed(rows), *rows[:2]]

    rig = rigged(server.url, order=disturbed)
    store.edit_many(edits(6))
    assert rig.relay.deliver(6) == 6
    assert rig.versions() == {1: [4, 3, 2, 2], 2: [44, 43, 42, 42]}
    assert (store.published(), store.backlog().unsent) == (6, 0)


# ── Redis in trouble ─────────────────────────────────────────────────────────────────────────────────


def test_while_redis_is_down_edits_wait_in_the_outbox(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig]
) -> None:
    server = start_server(appendonly=True)
    rig = rigged(server.url)
    store.edit(nick(1, "a"))
    assert rig.relay.deliver(1) == 1
    server.kill()
    store.edit(nick(1, "b"))
    store.edit(nick(2, "c"))
    for _ in range(2):
        with pytest.raises(RedisUnreachable):
            rig.relay.deliver(3)
    assert [row.seq for row in store.unsent(9)] == [2, 3]
    assert store.published() == 1
    server.start()
    assert rig.relay.deliver(3) == 2
    assert rig.versions() == {1: [2, 3], 2: [42]}
    assert store.published() == 3


def test_a_running_relay_waits_out_a_restart(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig]
) -> None:
    server = start_server(appendonly=True)
    rig = rigged(server.url)
    stop, troubles = threading.Event(), list[InfrastructureError]()
    totals: list[int] = []

    def run() -> None:
        with closing(UserStore(store.path)) as own:
            relay = Relay(own, Publisher(rig.stream, own.source, attempts=1))
            totals.append(
                relay.run(
                    stop,
                    poll_seconds=0.005,
                    on_trouble=lambda error, _: troubles.append(error),
                    backoff=QUICK,
                    rng=random.Random(1),
                )
            )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        store.edit(nick(1, "a"))
        eventually(lambda: store.published() == 1)
        server.kill()
        store.edit(nick(1, "b"))
        eventually(lambda: len(troubles) >= 3)
        server.start()
        eventually(lambda: store.published() == 2)
        store.edit(nick(1, "c"))
        eventually(lambda: store.published() == 3)
    finally:
        stop.set()
        thread.join(10)
    assert totals == [3]
    assert {type(trouble) for trouble in troubles} == {RedisUnreachable}
    assert rig.versions() == {1: [2, 3, 4]}


def test_an_edit_of_the_same_process_wakes_a_running_relay(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    """It polls once in an hour here."""
    rig, stop, totals = rigged(server.url), threading.Event(), list[int]()
    thread = threading.Thread(
        target=lambda: totals.append(rig.relay.run(stop, poll_seconds=3600, on_trouble=lambda *_: None))
    )
    thread.start()
    try:
        for number in range(1, 6):
            store.edit(nick(1, f"{number}"))
            eventually(lambda wanted=number: store.published() == wanted)  # type: ignore[misc]
    finally:
        stop.set()
        thread.join(10)
    assert totals == [5], "and it ends when it is told to, in the middle of the hour"


def test_a_lost_reply_repeats_events_in_the_stream_and_counts_them_once(
    store: UserStore, server: Server, lossy: Callable[[Server], LossyProxy], rigged: Callable[..., Rig]
) -> None:
    proxy = lossy(server)
    rig = rigged(proxy.url)
    store.edit_many(edits(4))
    proxy.lose_reply_to(b"XADD")
    assert rig.relay.deliver(4) == 4
    assert proxy.lost == 1
    assert rig.versions() == {1: [2, 3, 2, 3], 2: [42, 43, 42, 43]}
    once, again = rig.events()[:4], rig.events()[4:]
    assert [event.event_id for event in once] == [event.event_id for event in again]
    assert entry_ids(store) == [entry.id for entry in rig.stream.range()][4:]
    assert (store.published(), store.backlog().unsent, rig.sent) == (4, 0, [4])


class Refusing(Stream):
    """Refuses, in every round trip, the events of the given versions; the others it passes on."""

    def __init__(self, stream: Stream, versions: set[tuple[int, int]]) -> None:
        super().__init__(stream._client, stream.key, stream.where)
        self.stream = stream
        self.versions = versions
        self.round_trips: list[list[tuple[int, int]]] = []

    def append_many(self, bodies: Sequence[bytes]) -> list[str | ImsyncError]:
        events = [event for body in bodies if (event := DECODER.decode(body))]
        self.round_trips.append([(event.id, event.version) for event in events])
        return [
            RedisRefused("OOM") if (event.id, event.version) in self.versions else self.stream.append(body)
            for event, body in zip(events, bodies, strict=True)
        ]


def test_behind_a_refused_event_its_users_later_ones_wait_and_the_others_go_on(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    refusing = Refusing(rig.stream, {(1, 3)})
    relay = Relay(store, Publisher(refusing, store.source, attempts=1), batch=6)
    store.edit_many(edits(12))  # user 1: versions 2 to 7, user 2: versions 42 to 47
    with pytest.raises(RedisRefused, match="OOM"):
        relay.deliver(12)
    unsent = sql(store.path, "SELECT user_id, version FROM outbox WHERE sent_ms IS NULL ORDER BY seq")
    assert unsent == [(1, version) for version in range(3, 8)]
    assert store.published() == 7
    # those that were in one round trip with it stand in the stream already; the later ones were not tried
    assert refusing.round_trips[1] == [(2, 45), (2, 46), (2, 47)]
    with pytest.raises(RedisRefused):
        relay.deliver(12)
    refusing.versions.clear()
    assert relay.deliver(12) == 5
    assert (store.published(), store.backlog().unsent) == (12, 0)
    assert rig.versions()[2] == list(range(42, 48))
    assert rig.versions()[1][-5:] == [3, 4, 5, 6, 7]  # the newest stands last
    ids = [entry_id for (entry_id,) in sql(store.path, "SELECT entry_id FROM outbox WHERE user_id = 1 ORDER BY seq")]
    assert ids == sorted(ids)


def test_a_server_that_is_full_loses_nothing_and_keeps_each_users_order(
    store: UserStore, start_server: StartServer, rigged: Callable[..., Rig]
) -> None:
    server = start_server(maxmemory_policy="noeviction")
    rig = rigged(server.url, batch=40)
    store.edit_many(edits(200, weight=2000))
    with server.client() as admin:
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 200_000)
        with pytest.raises(RedisRefused, match="maxmemory") as raised:
            rig.relay.deliver(200)
        assert "free memory" in raised.value.hint
        noted = store.published()
        assert 0 < noted < 200
        assert store.backlog().unsent == 200 - noted
        for user_id in (1, 2):
            versions = sql(store.path, f"SELECT version, sent_ms FROM outbox WHERE user_id = {user_id} ORDER BY seq")
            sent = [sent_ms is not None for _, sent_ms in versions]
            assert sent == sorted(sent, reverse=True)  # a prefix of the user's history
        admin.config_set("maxmemory", 0)
    assert rig.relay.deliver(200) == 200 - noted
    assert {event.event_id for event in rig.events()} == {event.event_id for event in outbox_events(store.path)}
    assert store.published() == 200
    for user_id, last in ((1, 101), (2, 141)):
        assert rig.versions()[user_id][-1] == last
        ids = sql(store.path, f"SELECT entry_id FROM outbox WHERE user_id = {user_id} ORDER BY seq")
        positions = [tuple(map(int, entry_id.split("-"))) for (entry_id,) in ids]
        assert positions == sorted(positions)


# ── one active relay ─────────────────────────────────────────────────────────────────────────────────

STUCK = """
import sys, time
from pathlib import Path
from imsync.bus.publisher import Publisher
from imsync.bus.stream import Stream
from imsync.im.relay import Relay
from imsync.im.user_store import UserStore

class Stuck(Stream):
    def __init__(self): pass
    def append_many(self, bodies):
        print("sending", len(bodies), flush=True)
        time.sleep(60)

store = UserStore(Path(sys.argv[1]))
Relay(store, Publisher(Stuck(), store.source)).deliver(99)
"""


def test_one_relay_is_active_and_kill_9_frees_its_place(
    store: UserStore, server: Server, rigged: Callable[..., Rig], spawn: Spawn
) -> None:
    rig = rigged(server.url)
    last_seq = store.edit_many(edits(3)).last_seq
    active = spawn("-c", STUCK, store.path)
    assert hear(active) == "sending 3"
    with pytest.raises(ImsyncError, match="another relay holds the outbox"):
        rig.relay.deliver(last_seq, patience_seconds=0.1)
    assert (rig.stream.length(), store.published()) == (0, 0)

    stop = threading.Event()
    totals: list[int] = []

    def run() -> None:
        with closing(UserStore(store.path)) as own:
            relay = Relay(own, Publisher(rig.stream, own.source))
            totals.append(relay.run(stop, poll_seconds=0.005, on_trouble=lambda *_: None))

    waiting = threading.Thread(target=run)
    waiting.start()
    try:
        active.kill()
        assert active.wait(10) == -signal.SIGKILL
        eventually(lambda: store.published() == 3)
        # it stays the active one: nobody else publishes, and what is new gets published all the same
        report = store.edit_many(edits(6))
        assert rig.relay.deliver(report.last_seq) == 0
        assert store.published() == 3 + report.accepted
    finally:
        stop.set()
        waiting.join(10)
    assert totals == [3 + report.accepted]
    assert rig.stream.length() == 3 + report.accepted


def test_what_another_relay_published_already_is_not_waited_for(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    last_seq = store.edit_many(edits(2)).last_seq
    with rig.relay._lock() as lock:
        assert lock
        other = Relay(store, Publisher(rig.stream, store.source))
        with other._lock() as second:
            assert not second
        rig.relay.drain()
        assert other.deliver(last_seq, patience_seconds=0.0) == 0
    with other._lock() as freed:
        assert freed
    assert (Path(f"{store.path}.relay-lock").stat().st_mode & 0o777) == 0o600


def test_another_relay_that_gets_on_is_waited_for(
    store: UserStore, server: Server, rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends a row at each look, and so needs longer for all of them than it may take for one."""
    rig = rigged(server.url)
    last_seq = store.edit_many(edits(30)).last_seq
    unsent = store.unsent

    def after_one_more(limit: int, after_seq: int = 0) -> list[OutboxRow]:
        store.mark_sent([(row.seq, "1-1") for row in unsent(1)])
        return unsent(limit, after_seq)

    monkeypatch.setattr(store, "unsent", after_one_more)
    waits = list[str]()
    other = Relay(store, Publisher(rig.stream, store.source), on_waiting=lambda: waits.append("waits"))
    with rig.relay._lock():
        assert other.deliver(last_seq, patience_seconds=0.1) == 0
    assert store.backlog().unsent == 0
    assert waits == ["waits"]


def test_what_could_not_be_noted_is_noted_later_and_not_sent_again(
    store: UserStore, server: Server, rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for an hour must not fill the stream with repeats."""
    rig, refusals = rigged(server.url, batch=10), iter(range(5))
    mark_sent = store.mark_sent

    def refuse(sent: Sequence[tuple[int, str]]) -> int:
        if next(refusals, None) is not None:
            raise StoreUnusable("the disk is full")
        return mark_sent(sent)

    monkeypatch.setattr(store, "mark_sent", refuse)
    store.edit_many(edits(25))
    for _ in range(5):
        with pytest.raises(StoreUnusable):
            rig.relay.drain()
    assert (rig.stream.length(), store.published()) == (10, 0)
    assert rig.relay.drain() == 25
    assert (rig.stream.length(), store.published(), rig.relay.published) == (25, 25, 25)
    assert entry_ids(store) == [entry.id for entry in rig.stream.range()]


def test_alone_no_relay_publishes(store: UserStore, server: Server, rigged: Callable[..., Rig]) -> None:
    rig, waits, delivered = rigged(server.url), threading.Event(), list[int]()
    other = Relay(store, Publisher(rig.stream, store.source), on_waiting=waits.set)
    last_seq = store.edit_many(edits(4)).last_seq
    waiter = threading.Thread(target=lambda: delivered.append(other.deliver(last_seq, patience_seconds=30.0)))
    with rig.relay.alone():
        waiter.start()
        assert waits.wait(10)
        third = Relay(store, Publisher(rig.stream, store.source))
        with pytest.raises(ImsyncError, match="another rebuild") as raised, third.alone(patience_seconds=0.0):
            pytest.fail("it is not alone")
        assert raised.value.hint
        assert store.published() == 0
        assert rig.relay.drain() == 4
    waiter.join(10)
    assert delivered == [0], "it waited, and found nothing left"
    with pytest.raises(StoreUnusable), other.alone():
        raise StoreUnusable("what went wrong in the block")
    with rig.relay.alone(patience_seconds=0.0):
        pass


def test_a_relay_at_work_gives_way_and_goes_on(store: UserStore, server: Server, rigged: Callable[..., Rig]) -> None:
    """Although more is edited than it can publish, so that its outbox is never empty."""
    rig, stop = rigged(server.url), threading.Event()

    def work() -> None:
        with closing(UserStore(store.path)) as own:
            relay = Relay(own, Publisher(rig.stream, own.source), batch=1)
            relay.run(stop, poll_seconds=0.01, on_trouble=lambda error, delay: None)

    store.edit_many(edits(2000))
    worker = threading.Thread(target=work)
    worker.start()
    eventually(lambda: store.published() > 10)
    with rig.relay.alone():
        published = store.published()
        assert published < 2000
        assert rig.relay.drain() == 2000 - published
        store.edit_many(edits(10))
        assert store.published() == 2000
    eventually(lambda: store.published() == 2010)
    stop.set()
    worker.join(10)
    assert rig.stream.length() == 2010, "nothing was sent twice"


# ── standing by ──────────────────────────────────────────────────────────────────────────────────────


def test_who_stands_by_has_no_lock_to_take_between_the_commit_and_the_round_trip(
    store: UserStore, server: Server, rigged: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, happened = rigged(server.url), list[str]()
    append, take = rig.stream.append_many, rig.relay._lock

    def appending(bodies: Sequence[bytes]) -> list[str | ImsyncError]:
        happened.append("XADD")
        return append(bodies)

    def taking(*arguments: Any) -> AbstractContextManager[bool]:
        happened.append("lock")
        return take(*arguments)

    monkeypatch.setattr(rig.stream, "append_many", appending)
    monkeypatch.setattr(rig.relay, "_lock", taking)
    other = Relay(store, Publisher(rig.stream, store.source))
    with rig.relay.standing_by():
        with other._lock() as free:
            assert not free, "nobody else may publish meanwhile"
        report = store.edit_many(edits(2))
        happened.append("edit")
        assert rig.relay.deliver(report.last_seq) == 2
    assert happened[happened.index("edit") :][:2] == ["edit", "XADD"]
    assert other.deliver(store.edit_many(edits(4)).last_seq, patience_seconds=0.0) > 0, "the lock is free again"
    assert rig.relay.deliver(store.edit_many(edits(2)).last_seq) == 2, "as ever, without standing by"


def test_who_stands_by_while_another_has_its_turn_edits_all_the_same(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    other = Relay(store, Publisher(rig.stream, store.source))
    with other.standing_by(), rig.relay.standing_by():
        report = store.edit_many(edits(2))
        with pytest.raises(ImsyncError, match="another relay holds the outbox"):
            rig.relay.deliver(report.last_seq, patience_seconds=0.0)
        assert other.deliver(report.last_seq) == 2
        assert rig.relay.deliver(report.last_seq) == 0, "it is published by now"
    with other.alone(), rig.relay.standing_by():
        report = store.edit_many(edits(4))
        with pytest.raises(ImsyncError, match="relays pause"):
            rig.relay.deliver(report.last_seq, patience_seconds=0.0)
        assert (rig.stream.length(), store.backlog().unsent) == (2, report.accepted)
    assert rig.relay.deliver(report.last_seq) == report.accepted


def test_who_stands_by_gives_way_to_whoever_wants_to_be_alone(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    """It does not hold the lock that the other waits for."""
    rig, other = rigged(server.url, batch=1), Relay(store, Publisher(rigged(server.url).stream, store.source))
    with ExitStack() as held:
        assert other._taken(PAUSE, held)
        with rig.relay.standing_by(), other._lock() as free:
            assert free
    with rig.relay.standing_by(), ExitStack() as held:
        last_seq = store.edit_many(edits(2)).last_seq
        assert other._taken(PAUSE, held)
        with pytest.raises(ImsyncError, match="relays pause"):
            rig.relay.deliver(last_seq, patience_seconds=0.0)
        assert rig.stream.length() == 1, "who stood by already has finished its round trip"
        with other._lock() as free:
            assert free, "and has gone"


def test_who_stands_by_twice_stands_by_until_the_outer_block_ends(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    other = Relay(store, Publisher(rig.stream, store.source))
    with rig.relay.standing_by():
        with rig.relay.standing_by():
            assert rig.relay.deliver(store.edit_many(edits(2)).last_seq) == 2
        with other._lock() as free:
            assert not free
        assert rig.relay.deliver(store.edit_many(edits(4)).last_seq) == 2
    with other._lock() as free:
        assert free


def test_another_thread_has_no_turn_while_one_stands_by(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig, refused = rigged(server.url), list[str]()

    def deliver_too(last_seq: int) -> None:
        with rig.relay.standing_by(), pytest.raises(ImsyncError) as error:
            rig.relay.deliver(last_seq, patience_seconds=0.0)
        refused.append(error.value.message)

    with rig.relay.standing_by():
        last_seq = store.edit_many(edits(2)).last_seq
        thread = threading.Thread(target=deliver_too, args=(last_seq,))
        thread.start()
        thread.join(10)
        assert ["another relay holds the outbox" in each for each in refused] == [True]
        assert rig.relay.deliver(last_seq) == 2, "the other has not ended this one's turn"
    assert rig.stream.length() == 2


def test_who_stands_by_a_lock_in_trouble_edits_all_the_same(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    Path(f"{store.path}.relay-lock").mkdir()
    with rig.relay.standing_by():
        report = store.edit_many(edits(2))
        with pytest.raises(StoreUnusable, match="cannot lock"):
            rig.relay.deliver(report.last_seq)
    assert report.accepted == store.backlog().unsent == 2


# ── being told to stop ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["deliver", "run"])
def test_told_to_stop_it_finishes_the_round_trip(
    store: UserStore, server: Server, rigged: Callable[..., Rig], how: str
) -> None:
    rig = rigged(server.url)
    stop = threading.Event()
    relay = Relay(store, Publisher(rig.stream, store.source), batch=7, on_sent=lambda _: stop.set())
    last_seq = store.edit_many(edits(20)).last_seq
    if how == "deliver":
        assert relay.deliver(last_seq, stop=stop) == 7
    else:
        assert relay.run(stop, poll_seconds=0.005, on_trouble=lambda *_: None) == 7
    assert (relay.published, store.published(), store.backlog().unsent, rig.stream.length()) == (7, 7, 13, 7)


def test_told_to_stop_it_does_not_wait_for_another_relay(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    last_seq = store.edit_many(edits(2)).last_seq
    stop = threading.Event()
    other = Relay(store, Publisher(rig.stream, store.source), on_waiting=stop.set)
    with rig.relay._lock():
        assert other.deliver(last_seq, stop=stop) == 0
    assert store.backlog().unsent == 2


def test_what_was_published_before_a_trouble_counts(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    refusing = Refusing(rig.stream, {(1, 3)})
    relay = Relay(store, Publisher(refusing, store.source, attempts=1))
    store.edit_many(edits(6))
    stop = threading.Event()
    assert relay.run(stop, poll_seconds=0.005, on_trouble=lambda *_: stop.set()) == relay.published == 4


# ── the lock's file ──────────────────────────────────────────────────────────────────────────────────


def test_a_lock_that_cannot_be_used_is_a_trouble_of_the_store(
    store: UserStore, server: Server, rigged: Callable[..., Rig]
) -> None:
    rig = rigged(server.url)
    last_seq = store.edit_many(edits(2)).last_seq
    lock = Path(f"{store.path}.relay-lock")
    lock.mkdir()
    with pytest.raises(StoreUnusable, match="Is a directory") as raised:
        rig.relay.deliver(last_seq)
    assert raised.value.hint
    lock.rmdir()
    assert rig.relay.deliver(last_seq) == 2
