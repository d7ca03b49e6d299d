"""`verify`: each way in which a copy can be wrong is found and named, and what is on its way is not called wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from imsync.bus.codec import Decoder, encode
from imsync.bus.handler import Rejected
from imsync.bus.outcome import DeadLetter
from imsync.im.causes import Cause, Mend, Place
from imsync.im.events import UserDeleted, UserUpdated
from imsync.im.user_store import Profile
from imsync.store.projection import SourceState
from tests.drifting import Refusing, World, foreign, make_world
from tests.servers import Server
from tests.stores import GONE, MIA, NOAH, nick, sql


@pytest.fixture
def world(tmp_path: Path, server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make_world(tmp_path, server.url, stack)


@pytest.fixture
def any_world(tmp_path: Path, any_server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make_world(tmp_path, any_server.url, stack)


def test_right_copies_are_right(world: World) -> None:
    verdict = world.verify()
    assert (verdict.users, verdict.rows, verdict.drift, verdict.in_flight) == (3, 3, 0, 0)
    world.rename(MIA, "Mia 2")
    assert world.found() == {}


# ── on its way ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_waits_in_the_outbox_in_the_stream_or_at_a_consumer_is_in_flight(any_world: World) -> None:
    world = any_world
    world.edit(nick(MIA.id, "Mia 2"))
    assert world.found() == {"in_flight": 1}
    assert world.verify().ways == {Place.OUTBOX: 1}
    world.relay()
    assert world.verify().ways == {Place.UNDELIVERED: 1}
    assert len(world.stream.read_new("group", "somebody", 10)) == 1
    verdict = world.verify()
    assert (verdict.drift, verdict.ways, verdict.held_by) == (0, {Place.PENDING: 1}, {("group", "somebody"): 1})
    world.consume()
    assert world.found() == {}


def test_a_newer_event_on_its_way_explains_what_its_elders_left_undone(world: World) -> None:
    """A newer event supersedes whole, so it will mend what a dead or a lost one has left."""
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.consume(Refusing(world.groups, [MIA.id]))
    world.edit(nick(NOAH.id, "Noah 2"))
    world.relay()
    world.acknowledge_unseen()
    world.stream.trim("9999999999999-0", exact=True)
    assert set(world.found()) == {Cause.DEAD_LETTERED, Cause.TRIMMED}
    world.edit(nick(MIA.id, "Mia 3"), nick(NOAH.id, "Noah 3"))
    assert world.found() == {"in_flight": 2}
    world.relay()
    world.consume()
    assert world.found() == {}


# ── events that did not come, or came to nothing ─────────────────────────────────────────────────────────


def test_dead_lettered(any_world: World) -> None:
    world = any_world
    world.rename(MIA, "Mia 2")
    world.edit(nick(MIA.id, "Mia 3"))
    world.relay()
    world.consume(Refusing(world.groups, [MIA.id]))
    drift = world.drift()
    assert (drift.cause, drift.mend, drift.source_version, drift.copy_version) == (
        Cause.DEAD_LETTERED,
        Mend.TOUCH,
        3,
        2,
    )
    assert drift.detail.endswith(": colour"), "the reason of its dead letter"


def test_a_dead_event_whose_younger_one_was_lost_is_not_the_cause(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.consume(Refusing(world.groups, [MIA.id]))
    world.edit(nick(MIA.id, "Mia 3"))
    world.relay()
    world.stream.trim("9999999999999-0", exact=True)
    assert world.found() == {Cause.TRIMMED: 1}


def test_a_dead_event_whose_elder_is_pending_is_the_cause(world: World) -> None:
    """The elder cannot bring the copy to where the dead one would have."""
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    assert world.stream.read_new("group", "somebody", 10)
    world.edit(nick(MIA.id, "Mia 3"))
    world.relay()
    newest = world.stream.read_new("group", "somebody", 10)
    event = Decoder([UserUpdated]).decode(newest[0].body)
    world.groups.record_dead([Rejected(event, newest[0].id, DeadLetter("colour", ""))])
    world.stream.acknowledge("group", [newest[0].id])
    assert world.found() == {Cause.DEAD_LETTERED: 1}


@pytest.mark.parametrize("how", ["unread", "pending", "noted as lost"])
def test_trimmed(any_world: World, how: str) -> None:
    world = any_world
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    first = world.stream.range()[0].id
    world.edit(nick(NOAH.id, "Noah 2"))
    world.relay()
    if how != "unread":
        world.stream.read_new("group", "somebody", 1)
    world.stream.trim(world.stream.range()[-1].id, exact=True)
    assert world.found() == {Cause.TRIMMED: 1, "in_flight": 1}
    if how == "noted as lost":
        world.consume()
        assert world.group_sql("SELECT outcome FROM settled WHERE entry_id = ?", first) == [("lost",)]
        assert world.found() == {Cause.TRIMMED: 1}


def test_trimmed_although_the_group_has_read_on(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"), nick(NOAH.id, "Noah 2"))
    world.relay()
    world.stream.trim(world.stream.range()[-1].id, exact=True)
    world.consume()
    assert world.found() == {Cause.TRIMMED: 1}


@pytest.mark.parametrize("delivered", [False, True], ids=["undelivered", "pending"])
def test_lost_by_the_server_at_its_end(any_world: World, delivered: bool) -> None:
    world = any_world
    world.edit(nick(MIA.id, "Mia 2"), nick(NOAH.id, "Noah 2"))
    world.relay()
    if delivered:
        world.stream.read_new("group", "somebody", 10)
    world.stream.delete([world.stream.range()[-1].id])  # the tail, as a failover or a lost last second would
    assert world.found() == {Cause.LOST_BY_SERVER: 1, "in_flight": 1}
    world.relay()
    assert world.found() == {"in_flight": 2}, "a relay has sent it again"


def test_lost_by_the_server_with_the_stream(any_world: World) -> None:
    world = any_world
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.bus.client.flushall()
    assert world.found() == {Cause.LOST_BY_SERVER: 1}
    world.consume()  # makes the stream and its group again
    assert world.found() == {Cause.LOST_BY_SERVER: 1}


def test_lost_by_a_server_that_has_gone_on(world: World) -> None:
    """Nothing was ever trimmed of the stream that is there now, although it begins after what is gone."""
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.bus.client.flushall()
    world.stream.append(foreign(NOAH.id, 1, "Noah", "urn:somebody:else"))
    assert world.found() == {Cause.LOST_BY_SERVER: 1}


def test_unknown_is_what_was_acknowledged_and_never_settled(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    (entry_id,) = world.acknowledge_unseen()
    drift = world.drift()
    assert drift.cause is Cause.UNKNOWN
    assert entry_id in drift.detail


def test_unknown_is_what_the_outbox_does_not_remember(world: World) -> None:
    sql(world.users.path, "UPDATE im_user SET version = 44 WHERE id = 2")
    drift = world.drift()
    assert (drift.cause, drift.source_version, drift.copy_version) == (Cause.UNKNOWN, 44, 41)
    assert "no event of version 44" in drift.detail


def test_missing(world: World) -> None:
    world.group_sql("DELETE FROM user_profile_replica WHERE user_id = 1")
    drift = world.drift()
    assert (drift.cause, drift.source_version, drift.copy_version) == (Cause.MISSING, 1, 0)
    world.group_sql("DELETE FROM im_group_member WHERE user_id = 1")
    assert world.drift().cause is Cause.MISSING


# ── copies that somebody else wrote ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("UPDATE user_profile_replica SET version = 40 WHERE user_id = 2", Cause.UNKNOWN),
        ("UPDATE user_profile_replica SET version = 2 WHERE user_id = 1", Cause.AHEAD),
        ("UPDATE user_profile_replica SET nick_name = 'x' WHERE user_id = 1", Cause.EDITED),
        ("UPDATE user_profile_replica SET nick_name = 'x' WHERE user_id = 3", Cause.EDITED),
        ("UPDATE user_profile_replica SET deleted = 1 WHERE user_id = 1", Cause.EDITED),
        ("UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = 1", Cause.EDITED),
        ("UPDATE im_group_member SET head_image = 'x' WHERE user_id = 3", Cause.EDITED),
        ("UPDATE im_group_member SET user_nick_name = '', head_image = '' WHERE user_id = 1", Cause.STALE_JOIN),
        ("UPDATE user_profile_replica SET deleted = 0 WHERE user_id = 3", Cause.RESURRECTED),
        ("UPDATE user_profile_replica SET deleted = 0, version = 9, nick_name = 'x' WHERE user_id = 3",
         Cause.RESURRECTED),
        ("INSERT INTO user_profile_replica VALUES (99, 1, 'x', 'x', 0, 0)", Cause.ORPHAN),
        ("INSERT INTO user_profile_replica VALUES (99, 1, '', '', 1, 0)", Cause.ORPHAN),
        ("INSERT INTO im_group_member VALUES (99, 7, 'x', 'x', '', 0)", Cause.ORPHAN),
        ("INSERT INTO im_group_member VALUES (-5, 7, 'x', 'x', '', 0)", Cause.ORPHAN),
    ],
)  # fmt: skip
def test_what_was_never_published(world: World, statement: str, cause: Cause) -> None:
    world.group_sql(statement)
    assert world.found() == {cause: 1}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE user_profile_replica SET version = 1, nick_name = 'Mia' WHERE user_id = 1",
        "UPDATE user_profile_replica SET nick_name = 'x' WHERE user_id = 1",
        "UPDATE user_profile_replica SET deleted = 1, nick_name = '', head_image = '' WHERE user_id = 1",
        "DELETE FROM user_profile_replica WHERE user_id = 1",
    ],
    ids=["an older version", "other content", "a tombstone", "nothing"],
)
def test_edited_is_what_differs_from_an_event_that_was_applied(world: World, statement: str) -> None:
    world.rename(MIA, "Mia 2", "Mia 3")
    world.group_sql(statement)
    assert world.found() == {Cause.EDITED: 1}


def test_edited_at_the_source(world: World) -> None:
    world.rename(MIA, "Mia 2")
    sql(world.users.path, "UPDATE im_user SET nick_name = 'x' WHERE id = 1")
    drift = world.drift()
    assert drift.cause is Cause.EDITED
    assert "the source is not as its own event says" in drift.detail


def test_stale_since_a_join(world: World) -> None:
    """Rows that a service made from an old copy of its own."""
    world.rename(MIA, "Mia 2", "Mia 3")
    insert = "INSERT INTO im_group_member VALUES (1, ?, ?, 'mia_t.png', '', 0)"
    world.group_sql(insert, 8, "Mia 2")
    drift = world.drift()
    assert (drift.cause, drift.detail) == (Cause.STALE_JOIN, "1 of 2 rows show what was published earlier")
    world.group_sql("INSERT INTO im_group_member VALUES (1, 9, '', '', '', 0)")
    assert world.drift().cause is Cause.STALE_JOIN
    world.group_sql(insert, 10, "Mia 4")
    assert (world.drift().cause, world.drift().detail[:11]) == (Cause.EDITED, "3 of 4 rows")


def test_a_row_of_a_deleted_user_that_shows_what_it_was(world: World) -> None:
    world.rename(MIA, "Mia 2")
    world.users.delete_user(MIA.id)
    world.relay()
    world.consume()
    world.group_sql("INSERT INTO im_group_member VALUES (1, 8, 'Mia 2', 'mia_t.png', '', 0)")
    drift = world.drift()
    assert (drift.cause, drift.mend) == (Cause.STALE_JOIN, Mend.REBUILD), "no event passes a tombstone"


def test_resurrected_past_a_tombstone_that_was_applied(world: World) -> None:
    world.users.delete_user(MIA.id)
    world.relay()
    world.consume()
    world.group_sql("UPDATE user_profile_replica SET deleted = 0, version = 1, nick_name = 'Mia' WHERE user_id = 1")
    assert world.found() == {Cause.RESURRECTED: 1}


# ── a user store that was restored from a backup ─────────────────────────────────────────────────────────


def test_ahead_of_a_restored_source(world: World) -> None:
    for name in ("Mia 2", "Mia 3"):  # of which the restored source knows nothing
        world.stream.append(foreign(MIA.id, int(name[-1]), name, world.users.source))
    world.consume()
    assert world.drift().cause is Cause.AHEAD
    world.rename(MIA, "Mia anew")
    assert world.drift().cause is Cause.AHEAD, "version 2 of 3"
    world.rename(MIA, "Mia once more")
    drift = world.drift()
    assert (drift.source_version, drift.copy_version) == (3, 3)
    assert drift.cause is Cause.AHEAD, "the same version of another history was there before"
    world.rename(MIA, "Mia at last")
    assert world.found() == {}


def test_a_tombstone_that_a_restored_source_has_forgotten(world: World) -> None:
    world.stream.append(encode(UserDeleted(id=MIA.id, version=2), source=world.users.source))
    world.consume()
    drift = world.drift()
    assert (drift.cause, drift.mend) == (Cause.AHEAD, Mend.TOUCH_REBUILD)
    world.rename(MIA, "Mia 2")
    assert world.drift().cause is Cause.AHEAD
    world.rename(MIA, "Mia 3")
    drift = world.drift()
    assert (drift.cause, drift.mend) == (Cause.AHEAD, Mend.REBUILD)


def test_of_two_tombstones_none_is_newer(world: World) -> None:
    world.group_sql("UPDATE user_profile_replica SET version = 900 WHERE user_id = ?", GONE.id)
    assert world.found() == {}


# ── what is no drift ─────────────────────────────────────────────────────────────────────────────────────


def test_an_override_is_no_drift(world: World) -> None:
    world.group_sql("UPDATE im_group_member SET remark_nick_name = 'mine', quit = 1")
    assert world.found() == {}


def test_a_source_that_is_edited_while_it_is_compared_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies are read after the source, so an edit in between makes them look ahead of it."""
    states = world.users.states

    def old_states(after: int, limit: int) -> list[SourceState]:
        page = states(after, limit)
        if limit > 1 and after < 0:  # the scan; looks at one user are up to date
            return [replace(page[0], version=page[0].version - 1), *page[1:]]
        return page

    world.rename(MIA, "Mia 2")
    monkeypatch.setattr(world.users, "states", old_states)
    assert world.found() == {}


def test_a_user_that_is_edited_at_every_look_is_in_flight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(range(1, 1000))

    def state(user_id: int) -> SourceState:
        return SourceState(user_id, 1, False, {"nick_name": f"{next(seen)}", "head_image": "", "head_image_thumb": ""})

    world.group_sql("UPDATE user_profile_replica SET version = 5 WHERE user_id = 1")
    monkeypatch.setattr(world.users, "state", state)
    assert world.verify().ways == {Place.EDITING: 1}


def test_an_event_that_is_sent_again_while_it_is_looked_for_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay gives it another entry between the look at the outbox and the look at the stream."""
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.stream.delete([world.stream.range()[-1].id])
    events_of = world.users.events_of
    looks = []

    def events_then_relay(user_id: int, limit: int = 100) -> object:
        found = events_of(user_id, limit)
        if not looks:
            world.relay()
        looks.append(user_id)
        return found

    monkeypatch.setattr(world.users, "events_of", events_then_relay)
    assert world.found() == {"in_flight": 1}


# ── which users ──────────────────────────────────────────────────────────────────────────────────────────


def test_single_users(world: World) -> None:
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'x'")
    world.group_sql("INSERT INTO im_group_member VALUES (99, 7, 'x', 'x', '', 0)")
    verdict = world.verify(keys=[MIA.id, 99, 100])
    assert (verdict.users, verdict.rows) == (1, 2)
    assert verdict.causes == {Cause.EDITED: 1, Cause.ORPHAN: 1}


def test_more_suspects_than_a_page_are_all_judged(tmp_path: Path, server: Server) -> None:
    people = [Profile(n, f"u{n}", f"n{n}", "", "") for n in range(1, 2502)]
    with ExitStack() as stack:
        world = make_world(tmp_path, server.url, stack, people)
        world.group_sql("UPDATE user_profile_replica SET nick_name = 'other'")
        world.group_sql("UPDATE im_group_member SET user_nick_name = 'other'")
        world.group_sql(
            "WITH RECURSIVE n(i) AS (SELECT 3001 UNION ALL SELECT i + 1 FROM n WHERE i < 5200)"
            " INSERT INTO im_group_member SELECT i, 7, 'x', '', '', 0 FROM n"
        )
        drifted: list[int] = []
        verdict = world.verify(on_drift=lambda drift: drifted.append(drift.user_id), max_examples=7)
    assert (verdict.users, verdict.rows, len(verdict.examples)) == (2501, 4701, 7)
    assert verdict.causes == {Cause.EDITED: 2501, Cause.ORPHAN: 2200}
    assert sorted(drifted) == [*range(1, 2502), *range(3001, 5201)]
