"""A repair: every cause that a touch can mend is gone afterwards, and what it cannot mend is named, not hidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imsync.bus.event import MAX_INT
from imsync.im.causes import Cause, Mend
from imsync.im.events import DESTINATION
from imsync.im.rebuild import rebuild
from imsync.im.relay import Relay
from imsync.im.repair import Plan, Rechecked, recheck, touch
from imsync.im.user_store import Profile
from imsync.im.verify import Drift
from tests.drifting import OPTIONS, WAYS, Refusing, World, foreign, make_world
from tests.servers import Server
from tests.stores import GONE, MIA, NOAH, nick, outbox_events, sql


@pytest.fixture
def world(tmp_path: Path, server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make_world(tmp_path, server.url, stack)


def planned(world: World) -> Plan:
    plan = Plan(["group"])
    world.verify(on_drift=plan.add)
    return plan


def repaired(world: World, *, patience_seconds: float = 5.0) -> Rechecked:
    """Touches what drifted, publishes it, and looks again. While it waits, the consumer is at work."""
    with planned(world) as plan:
        touch(world.users, plan)
        world.relay()
        return recheck(
            world.users, [world.groups], world.flight_to, plan,
            patience_seconds=patience_seconds, sleep=lambda seconds: world.consume(),
        )  # fmt: skip


def rebuilt(world: World) -> None:
    relay = Relay(world.users, world.bus.publisher(DESTINATION))
    rebuild(world.users, world.groups, world.bus, DESTINATION, relay, options=OPTIONS)


def content(world: World) -> list[tuple[object, ...]]:
    """What users are, but for their versions."""
    return sql(world.users.path, "SELECT id, nick_name, head_image, head_image_thumb, deleted FROM im_user ORDER BY id")


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_is_mended_by_a_touch(world: World, cause: Cause) -> None:
    WAYS[cause](world)
    assert world.found() == {cause: 1}
    before = content(world)
    assert repaired(world) == Rechecked(repaired=1)
    assert world.found() == {}
    assert [row for row in content(world) if row[0] != 99] == before
    if cause is Cause.ORPHAN:
        assert content(world)[-1] == (99, "", "", "", 1)
        assert world.group_sql("SELECT user_nick_name, head_image, remark_nick_name FROM im_group_member "
                               "WHERE user_id = 99") == [("", "", "mine")]  # fmt: skip


def test_the_new_version_is_above_the_source_and_every_copy(world: World) -> None:
    world.rename(MIA, "Mia 2")
    WAYS[Cause.AHEAD](world)
    with planned(world) as plan:
        assert (plan.drifted, plan.to_touch, plan.left) == (1, 1, 0)
        assert plan.new_version(MIA.id) == 8
        assert plan.new_version(NOAH.id) is None
        done = touch(world.users, plan)
    assert (done.users, done.refused) == (1, {})
    event = outbox_events(world.users.path)[-1]
    assert (event.id, event.version) == (MIA.id, 8)
    assert getattr(event, "nick_name") == "Mia 2"  # noqa: B009 - it is a view
    assert world.users.profiles([MIA.id])[MIA.id].version == 8
    assert world.found() == {"in_flight": 1}


def test_users_are_touched_in_few_transactions(tmp_path: Path, server: Server) -> None:
    people = [Profile(n, f"u{n}", f"n{n}", "", "") for n in range(1, 2502)]
    with ExitStack() as stack:
        world = make_world(tmp_path, server.url, stack, people)
        world.group_sql("UPDATE im_group_member SET user_nick_name = 'x'")
        created = sql(world.users.path, "SELECT count(*) FROM outbox")
        handled: list[int] = []
        with planned(world) as plan:
            assert touch(world.users, plan, on_users=handled.append).users == 2501
        assert (created, handled) == ([(0,)], [1000, 1000, 501])
        world.relay()
        world.consume()
        assert world.found() == {}


def test_two_projections_are_mended_by_one_event() -> None:
    with Plan(["group", "friend"]) as plan:
        for name, version in (("group", 4), ("friend", 9)):
            plan.add(Drift(7, name, Cause.AHEAD, "", Mend.TOUCH, 3, version))
        plan.add(Drift(8, "friend", Cause.AHEAD, "", Mend.REBUILD, 3, 4))
        plan.add(Drift(-1, "friend", Cause.ORPHAN, "", Mend.BY_HAND, 0, 4))
        plan.add(Drift(7, "group", Cause.AHEAD, "", Mend.TOUCH, 3, 4))
        assert (plan.drifted, plan.to_touch, plan.left) == (3, 1, 2)
        ((target,),) = plan.targets()
        assert (target.user_id, target.above, plan.new_version(7)) == (7, 9, 10)
        assert plan.mends(target, "group")
        assert plan.mends(target, "friend")


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_consumer_it_waits_as_long_as_it_may(world: World) -> None:
    WAYS[Cause.EDITED](world)
    now = 0.0
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    with planned(world) as plan:
        touch(world.users, plan)
        result = recheck(
            world.users, [world.groups], world.flight_to, plan, patience_seconds=3, clock=lambda: now, sleep=sleep
        )
    assert result == Rechecked(waiting=1)
    assert now == pytest.approx(3)
    assert len(pauses) > 3


def test_what_drifts_again_is_not_repaired(world: World) -> None:
    WAYS[Cause.EDITED](world)
    with planned(world) as plan:
        touch(world.users, plan)
        world.relay()
        world.consume(Refusing(world.groups, [MIA.id]))
        result = recheck(world.users, [world.groups], world.flight_to, plan, patience_seconds=0)
    assert result == Rechecked(wrong=1)
    assert world.found() == {Cause.DEAD_LETTERED: 1}


# ── what a touch cannot mend ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("statement", "cause", "mend"),
    [
        ("UPDATE user_profile_replica SET deleted = 1 WHERE user_id = 1", Cause.EDITED, Mend.TOUCH_REBUILD),
        ("UPDATE user_profile_replica SET deleted = 1, version = 40 WHERE user_id = 2", Cause.AHEAD, Mend.REBUILD),
        ("UPDATE user_profile_replica SET version = 9223372036854775807 WHERE user_id = 1", Cause.AHEAD, Mend.REBUILD),
        ("UPDATE user_profile_replica SET version = 9223372036854775806 WHERE user_id = 1", Cause.AHEAD, Mend.REBUILD),
        ("UPDATE user_profile_replica SET version = 9223372036854775807, deleted = 1 WHERE user_id = 1", Cause.AHEAD,
         Mend.REBUILD),
        ("UPDATE user_profile_replica SET version = 9223372036854775807, deleted = 0 WHERE user_id = 3",
         Cause.RESURRECTED, Mend.REBUILD),
        ("UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = 3", Cause.EDITED, Mend.REBUILD),
        ("UPDATE user_profile_replica SET nick_name = 'x', version = 900 WHERE user_id = 3", Cause.EDITED,
         Mend.TOUCH_REBUILD),
        ("INSERT INTO user_profile_replica VALUES (99, 9223372036854775807, 'x', 'x', 0, 0)", Cause.ORPHAN,
         Mend.TOUCH_REBUILD),
        ("INSERT INTO user_profile_replica VALUES (99, 5, 'x', '', 1, 0)", Cause.ORPHAN, Mend.TOUCH_REBUILD),
    ],
)  # fmt: skip
def test_what_no_event_reaches_is_mended_by_a_rebuild(world: World, statement: str, cause: Cause, mend: Mend) -> None:
    world.group_sql(statement)
    drift = world.drift()
    assert (drift.cause, drift.mend) == (cause, mend)
    assert world.verify().unrepairable == 1
    with planned(world) as plan:
        assert (plan.to_touch, plan.left) == (int(mend is Mend.TOUCH_REBUILD), 1)
    result = repaired(world)
    assert result.repaired == 0, "nothing is said to be repaired that is not"
    world.consume()
    if mend is Mend.REBUILD:
        assert world.verify().drift == 1
    rebuilt(world)
    assert world.found() == {}
    world.rename(MIA, "Mia as ever")
    assert world.found() == {}


def test_an_orphan_that_is_an_empty_tombstone_needs_no_rebuild(world: World) -> None:
    world.group_sql("INSERT INTO user_profile_replica VALUES (99, 5, '', '', 1, 0)")
    assert world.drift().mend is Mend.TOUCH
    assert repaired(world).repaired == 1
    assert world.found() == {}


def test_an_id_that_no_event_can_carry(world: World) -> None:
    world.group_sql("INSERT INTO im_group_member VALUES (-5, 7, 'x', 'x', '', 0)")
    assert (world.drift().cause, world.drift().mend) == (Cause.ORPHAN, Mend.BY_HAND)
    with planned(world) as plan:
        assert (plan.to_touch, plan.left) == (0, 1)


# ── the touch itself ─────────────────────────────────────────────────────────────────────────────────────


def test_a_touch_refuses_what_cannot_be_an_event_and_takes_the_rest(world: World) -> None:
    sql(world.users.path, "UPDATE im_user SET nick_name = ? WHERE id = 1", ["x" * 300])
    report = world.users.touch({1: 1, 2: MAX_INT - 1, 3: MAX_INT, 99: 5})
    assert report.touched == {3: MAX_INT, 99: 6}
    assert report.refused == {
        1: "its nick_name breaks the bounds of an event",
        2: f"user 2 has no version left above {MAX_INT - 1}",
    }
    assert [(event.id, event.version, event.final) for event in outbox_events(world.users.path)] == [
        (3, MAX_INT, True), (99, 6, True)
    ]  # fmt: skip
    assert world.users.profiles([1])[1].version == 1


def test_a_touch_is_one_transaction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise RuntimeError("here")

    monkeypatch.setattr(world.users, "_announce", fail)
    with pytest.raises(RuntimeError, match="here"):
        world.users.touch({1: 1, 99: 5})
    assert world.users.profiles([1, 99]) == {1: MIA}
    assert GONE.deleted


def test_after_an_orphan_was_made_a_tombstone_its_events_are_late(world: World) -> None:
    """Whoever sends them: a deletion is final."""
    WAYS[Cause.ORPHAN](world)
    repaired(world)
    world.stream.append(foreign(99, 40, "nobody", "urn:somebody:else"))
    world.consume()
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.consume()
    assert world.found() == {}
