"""The checker is checked: every planted bug is caught by name, and the same scenario without it comes to nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from imsync.bus import Backoff, RetryPolicy
from imsync.errors import StoreUnusable
from imsync.im.events import UserUpdated
from tests.faults.checker import NAMES
from tests.faults.evidence import DEAD, STREAM, load_group, rows
from tests.faults.mutants import MUTANTS
from tests.faults.rig import MakeWorld, World
from tests.faults.steps import At
from tests.faults.table import Fault, open_row
from tests.faults.workers import Failing
from tests.servers import eventually

PATIENCE = 2.5
"""How long, in seconds, something may take that a planted bug may prevent."""


@dataclass(frozen=True)
class Scenario:
    """A fault that brings bugs to light.

    Args:
        play: breaks a world and heals it; returns how often the fault was reached.
        also: rules of `checker.STRICT` that hold here.
        settings: settings that are planted besides, with the bug and without.
    """

    play: Callable[[World], int]
    also: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def plain(world: World) -> int:
    """No fault: all kinds of events, and processes that are told to stop in the end."""
    users = world.users
    world.inject(b"{")
    world.producer(count=60, deletes=users[-2:])
    world.relay()
    world.consumer("group", options={"batch": 5})
    world.settle()
    return 1


def consumer_dies(world: World, at: At) -> int:
    world.edit(30)
    world.publish()
    worker = world.consumer(at=[at], options={"batch": 10})
    worker.reach(at.step)
    assert worker.wait() == -9
    world.heal()
    world.settle()
    return worker.steps[at.step]


def consumer_dies_before_commit(world: World) -> int:
    return consumer_dies(world, At("before_commit", "die"))


def consumer_dies_at_its_second_commit(world: World) -> int:
    return consumer_dies(world, At("before_commit", "die", nth=2))


def producer_dies_at_its_second_commit(world: World) -> int:
    worker = world.producer(at=[At("before_commit", "die", nth=2)])
    worker.reach("before_commit")
    assert worker.wait() == -9
    world.settle()
    return worker.steps["before_commit"]


def events_in_reverse(world: World) -> int:
    users = world.users[:2]
    world.edit_users([*users, *users, *users])
    world.publish(order=lambda rows: rows[::-1])
    world.consumer("group", options={"batch": 1})
    world.settle()
    return 1


def version_of(world: World, user: int) -> int:
    return world.evidence().source.users[user].version


def forged(user: int, version: int) -> UserUpdated:
    return UserUpdated(
        id=user, version=version, nick_name="forged", head_image="forged", head_image_thumb="forged",
        occurred_at=datetime.now(UTC),
    )  # fmt: skip


def two_events_of_one_version(world: World) -> int:
    user = world.users[5]
    world.edit_users([user])
    world.publish()
    world.settle(stop=False)
    world.inject_event(forged(user, version_of(world, user)))
    world.settle()
    return 1


def late_update_after_a_tombstone(world: World) -> int:
    user = world.users[5]
    world.edit_users([user])
    world.delete(user)
    world.publish()
    world.settle(stop=False)
    world.inject_event(forged(user, version_of(world, user) + 1))
    world.settle()
    return 1


def group_destroyed_under_a_reader(world: World) -> int:
    world.consumer("group")
    eventually(lambda: world.client.xinfo_consumers(STREAM, "group"))
    trap = world.proxy.hold("XGROUP", "CREATE", "group")
    world.client.xgroup_destroy(STREAM, "group")
    trap.wait()
    world.edit(10)
    world.publish()
    world.heal()
    world.settle()
    return trap.happened


def no_memory_for_dead_letters(world: World) -> int:
    world.inject(b"{")
    trap = world.proxy.hold("XADD", DEAD + "group")
    world.consumer("group")
    trap.wait()
    world.client.config_set("maxmemory", "1")
    trap.release()

    def refused() -> int:
        return int(world.client.info("errorstats").get("errorstat_OOM", {}).get("count", 0))

    eventually(refused)
    world.client.config_set("maxmemory", "0")
    world.heal()
    world.settle()
    return refused()


def reply_to_a_read_is_lost(world: World) -> int:
    world.edit(10)
    world.publish()
    trap = world.proxy.drop_reply("XREADGROUP", ">")
    world.consumer("group")
    trap.wait()
    world.settle()
    return trap.happened


def trimmed_while_pending(world: World) -> int:
    # what is trimmed is not sent again: it was old enough
    world.relay_options = {"history_hours": 0.0}
    users = world.users[:5]
    world.edit_users(users)
    world.publish(history_hours=0.0)
    friend = world.consumer("friend")
    eventually(lambda: len(world.evidence().projections["friend"].settled) == len(users))
    friend.terminate()
    friend.wait()
    worker = world.consumer("group", at=[At("before_apply", "die")]).reach("before_apply")
    worker.wait()
    trimmed = world.client.xtrim(STREAM, maxlen=0, approximate=False)
    world.edit_users(users)  # so that nobody misses what is lost
    world.publish(history_hours=0.0)
    world.settle()
    return int(trimmed)


def stopped_while_an_event_waits_for_its_retry(world: World) -> int:
    first, second = world.users[:2]
    world.edit_users([first, second])
    world.publish()
    patient = RetryPolicy(max_attempts=100, backoff=Backoff(first_seconds=60, longest_seconds=60))
    worker = world.consumer("group", handler=Failing([first]), options={"retry": patient})
    eventually(lambda: len(world.pending()) == 1)
    worker.terminate()
    assert worker.finish()["left_pending"] == 1
    world.settle()
    return 1


def one_dead_behind_one_living(world: World) -> int:
    world.edit(20)
    world.publish()
    world.consumer("group", name="a", at=[At("before_apply")], options={"batch": 5}).reach("before_apply")
    dead = world.consumer("group", name="b", at=[At("before_apply", "die")], options={"batch": 5})
    dead.reach("before_apply").wait()
    world.consumer("group", name="c")
    world.expect(lambda: set(world.pending().values()) == {"a"}, "what the dead held was not taken over")
    world.heal()
    world.settle()
    return dead.steps["before_apply"]


def store_in_trouble(world: World) -> int:
    world.edit_users(world.users[:3])
    world.publish()
    times = 12
    world.consumer("group", handler=Failing(times=times, error=StoreUnusable))
    world.settle()
    return times


def handler_fails_for_ever(world: World) -> int:
    world.services = ("group",)  # in the other one the event is as good as any
    user = world.users[3]
    world.edit_users([each for each in world.users[:8] if each != user])
    world.publish()
    world.inject_event(forged(user, 1000), expects="dead")
    world.consumer("group", handler=Failing([user]))
    world.settle()
    return 1


def stopped_before_it_buries(world: World) -> int:
    world.services = ("group",)
    world.edit(5)
    world.publish()
    world.inject(b"{")
    slow = world.consumer("group", at=[At("before_bury", "freeze")]).reach("before_bury")
    world.consumer("group")
    eventually(lambda: load_group(world.client, "group").letters and not world.pending())
    slow.thaw()
    world.settle()
    return slow.steps["before_bury"]


def event_that_kills(world: World) -> int:
    world.services = ("group",)
    user = world.users[3]
    world.edit_users([each for each in world.users[:8] if each != user])
    world.publish()
    world.inject_event(forged(user, 1000), expects="dead")
    deaths = 0
    for _ in range(12):
        worker = world.consumer("group", at=[At("before_apply", "die", times=None, containing=f"user={user} ")])
        eventually(lambda: not worker.alive or load_group(world.client, "group").letters)  # noqa: B023
        if worker.alive:
            break
        deaths += 1
    world.settle(by_living=True)
    return deaths


def second_store_in_the_group(world: World) -> int:
    other = world.stores.with_name("other")
    shutil.copytree(world.stores, other)
    world.edit(10)
    world.publish()
    first = world.consumer("group")
    eventually(lambda: len(world.evidence().projections["group"].settled) == 10)
    first.terminate()
    first.wait()
    world.edit(10)
    world.publish()
    second = world.consumer("group", data_dir=other, options={"until_empty": True})
    second.wait()
    world.settle()
    return 1


def server_away(world: World) -> int:
    workers = [world.relay(), world.consumer("group")]
    eventually(lambda: world.client.xinfo_consumers(STREAM, "group"))  # past its start, where trouble ends it
    world.proxy.refuse()
    world.edit(5)
    with world.watching(*workers):
        time.sleep(1.2)
    world.heal()
    world.settle()
    return world.proxy.happened["refuse"]


def everything_twice(world: World) -> int:
    world.edit(20)
    world.publish()
    world.consumer("group")
    world.consumer("friend")
    world.settle(stop=False)
    time.sleep(0.3)  # some rounds of upkeep
    repeats = world.republish()
    world.settle()
    return repeats


def relay_dies_before_it_sends(world: World) -> int:
    world.relay_options = {"history_hours": 0.0}  # nobody else makes it good
    world.edit(20)
    worker = world.relay(at=[At("before_send", "die", nth=2)], batch=5).reach("before_send")
    assert worker.wait() == -9
    world.settle()
    return worker.steps["before_send"]


def connection_cut_while_publishing(world: World) -> int:
    world.relay_options = {"history_hours": 0.0}
    world.edit(20)
    trap = world.proxy.cut_at("XADD", nth=8, times=20)
    relay = world.relay(batch=100)
    eventually(lambda: trap.happened >= relay.job.attempts)  # none of the first round trip's is left
    world.heal()
    world.settle()
    return trap.happened


def two_relays(world: World) -> int:
    world.edit(10)
    slow = world.relay(at=[At("after_send")]).reach("after_send")
    sent: Any = world.client.xlen(STREAM)
    world.relay()
    deadline = time.monotonic() + 0.5
    while world.client.xlen(STREAM) == sent and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.go_on()
    world.settle()
    return slow.steps["after_send"]


def in_most_groups(world: World) -> int:
    """Who has the most rows."""
    most = "SELECT user_id FROM im_group_member GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
    ((user,),) = rows(world.stores / "group.db", most)
    return int(user)


def edited_again_and_again_in_many_groups(world: World) -> int:
    world.services = ("group",)
    user = in_most_groups(world)
    for _ in range(6):
        world.edit_users([user])
    world.publish()
    world.consumer("group", options={"batch": 1})
    world.settle()
    return 6


def consumer_dies_in_a_fan_out(world: World) -> int:
    world.services = ("group",)
    world.edit_users([in_most_groups(world)])
    world.publish()
    worker = world.consumer(at=[At("before_commit", "die", nth=3, inside="go_on")])
    worker.reach("before_commit")
    assert worker.wait() == -9
    ((left,),) = rows(world.stores / "group.db", "SELECT count(*) FROM fan_out")
    world.heal()
    world.settle()
    return int(left)


SCENARIOS = {
    "plain": Scenario(plain, ("published_twice", "published_out_of_order")),
    "consumer dies before commit": Scenario(consumer_dies_before_commit),
    "consumer dies at its second commit": Scenario(consumer_dies_at_its_second_commit),
    "producer dies at its second commit": Scenario(producer_dies_at_its_second_commit),
    "events in reverse": Scenario(events_in_reverse),
    "two events of one version": Scenario(two_events_of_one_version),
    "late update after a tombstone": Scenario(late_update_after_a_tombstone),
    "group destroyed under a reader": Scenario(group_destroyed_under_a_reader),
    "no memory for dead letters": Scenario(no_memory_for_dead_letters),
    "reply to a read is lost": Scenario(reply_to_a_read_is_lost),
    "trimmed while pending": Scenario(trimmed_while_pending),
    "stopped while an event waits for its retry": Scenario(stopped_while_an_event_waits_for_its_retry),
    "one dead behind one living": Scenario(one_dead_behind_one_living),
    "store in trouble": Scenario(store_in_trouble),
    "handler fails for ever": Scenario(handler_fails_for_ever),
    "stopped before it buries": Scenario(stopped_before_it_buries),
    "event that kills": Scenario(event_that_kills),
    "second store in the group": Scenario(second_store_in_the_group),
    "server away": Scenario(server_away),
    "everything twice": Scenario(everything_twice, settings=("quick upkeep",)),
    "relay dies before it sends": Scenario(relay_dies_before_it_sends),
    "connection cut while publishing": Scenario(connection_cut_while_publishing),
    "two relays": Scenario(two_relays, ("published_twice",)),
    "edited again and again in many groups": Scenario(
        edited_again_and_again_in_many_groups, settings=("few rows are many",)
    ),
    "consumer dies in a fan-out": Scenario(consumer_dies_in_a_fan_out, settings=("few rows are many",)),
}

BUGS = {name: mutant for name, mutant in MUTANTS.items() if mutant.caught_by}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, make_world: MakeWorld, request: pytest.FixtureRequest) -> None:
    mutant = MUTANTS[name]
    scenario = SCENARIOS[mutant.scenario]
    row = open_row(request.node, name, "mutant")
    world = make_world()
    world.patience = PATIENCE
    world.mutants = (name, *scenario.settings)
    row.reached(scenario.play(world))
    row.found(world.check(also=scenario.also))
    caught = sorted(set(mutant.caught_by) & row.violations.keys())
    row.verdict = ", ".join(caught)
    assert caught, f"expected {' or '.join(mutant.caught_by)}, found {row.violations}: {row.details}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_the_bug_nothing_is_found(name: str, make_world: MakeWorld, fault: Fault) -> None:
    scenario = SCENARIOS[name]
    row = fault(f"scenario of a mutant · {name}")
    world = make_world()
    world.mutants = scenario.settings
    row.reached(scenario.play(world))
    row.found(world.check(also=scenario.also))


def test_every_scenario_has_a_bug_and_every_bug_a_rule() -> None:
    assert {mutant.scenario for mutant in BUGS.values()} == SCENARIOS.keys()
    assert {name for mutant in BUGS.values() for name in mutant.caught_by} <= NAMES.keys()
    assert len(BUGS) >= 15


def test_a_bug_is_gone_when_its_block_ends() -> None:
    for mutant in MUTANTS.values():
        before = [_piece(owner, name) for owner, name, _ in mutant.pieces]
        with mutant.planted():
            assert all(
                _piece(owner, name) is not original
                for (owner, name, _), original in zip(mutant.pieces, before, strict=True)
            )
        assert [_piece(owner, name) for owner, name, _ in mutant.pieces] == before


def _piece(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, dict) else owner.__dict__[name]
