"""A world without faults comes to rest and breaks no rule; steps are reached, and workers do as they are told."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.faults.nursery import Nursery, Worker, WorkerFailed
from tests.faults.rig import World
from tests.faults.steps import CONSUMER_STEPS, DEAD_LETTER_STEPS, PRODUCER_STEPS, RELAY_STEPS, At
from tests.faults.table import Fault
from tests.faults.workers import CommandJob, RelayJob
from tests.servers import eventually

PLACES = [
    *(("producer", step) for step in PRODUCER_STEPS),
    *(("relay", step) for step in RELAY_STEPS),
    *(("consumer", step) for step in CONSUMER_STEPS),
    *(("dead letters", step) for step in DEAD_LETTER_STEPS),
]


def start(world: World, who: str, *at: At) -> Worker:
    """A worker that has something to do."""
    world.edit(10)
    if who == "producer":
        return world.producer(count=10, at=at)
    if who == "relay":
        return world.relay(at=at)
    world.publish()
    if who == "dead letters":
        world.inject(b"{")
        at = tuple(At(each.step, each.do, inside="bury") if "trans" in each.step + each.do else each for each in at)
    return world.consumer(at=at)


def test_nothing_is_found_where_nothing_is_wrong(world: World, fault: Fault) -> None:
    row = fault("none")
    world.producer(count=100, deletes=world.users[-3:])
    world.relay()
    world.edit(50)
    world.inject(b"{")
    world.consumer("group")
    world.settle()
    row.reached()
    row.found(world.check(also=["published_twice", "published_out_of_order"]))
    evidence = world.evidence()
    events = len(evidence.source.outbox)
    assert len(evidence.story.accepted) == events
    assert events > 100
    for projection in evidence.projections.values():
        assert sum(outcome in ("applied", "superseded") for outcome, _ in projection.settled.values()) == events
        assert len(projection.effects) > len(evidence.began)
    assert evidence.acknowledged  # the proxy has listened


@pytest.mark.parametrize(("who", "step"), PLACES, ids=lambda value: value.replace(" ", "-"))
def test_every_step_is_reached_and_passed(world: World, who: str, step: str) -> None:
    worker = start(world, who, At(step))
    worker.reach(step)
    assert worker.alive
    if step == "before_commit":  # the write lock is held
        store = "group" if who in ("consumer", "dead letters") else "user"
        with pytest.raises(sqlite3.OperationalError, match="locked"), world.write_lock(store, patience=0.0):
            pass
    worker.go_on()
    world.settle()
    assert world.check() == []
    assert worker.steps == {step: 1}


def test_at_a_step_a_worker_is_frozen_or_dies(world: World) -> None:
    frozen = start(world, "consumer", At("before_commit", "freeze"))
    frozen.reach("before_commit")
    cpu = frozen.cpu_seconds()
    time.sleep(0.05)
    assert frozen.cpu_seconds() == cpu
    frozen.thaw()
    eventually(lambda: not world.client.xpending("imsync:{user-update}:stream", "group")["pending"])
    dying = start(world, "consumer", At("before_commit", "die", nth=2))
    frozen.terminate()
    assert frozen.wait() == 0
    world.edit_users(world.users[:30])
    world.publish()
    assert dying.reach("before_commit").wait() == -9
    world.settle()
    assert world.check() == []


def test_a_step_may_be_that_of_one_event(world: World) -> None:
    first, second = world.users[:2]
    world.edit_users([first, second])
    world.publish()
    worker = world.consumer(at=[At("before_apply", containing=f"user={second} ")], options={"batch": 1})
    worker.reach("before_apply")
    evidence = world.evidence()
    assert [effect.user for effect in evidence.projections["group"].effects[len(evidence.began) :]] == [first]
    world.heal()
    world.settle()
    assert world.check() == []


def test_what_a_worker_says_when_it_fails_is_told(nursery: Nursery) -> None:
    missing = nursery.start(CommandJob(["verify", "--data-dir", "/nowhere", "--json", "--url", "unix:///nowhere"]))
    result = missing.finish()
    assert result["code"] == 5
    assert "no user store" in result["out"]
    relay = nursery.start(RelayJob(Path("/nowhere"), "unix:///nowhere"))
    with pytest.raises(WorkerFailed, match="exited with 1"):
        relay.finish()
    assert relay.error is not None
    assert relay.error[0] == "StoreUnusable"
    with pytest.raises(WorkerFailed, match="did not reach nowhere"):
        nursery.start(CommandJob(["--version"])).reach("nowhere")


def test_workers_end_with_their_nursery_whatever_their_state(world: World) -> None:
    held = start(world, "consumer", At("before_commit")).reach("before_commit")
    frozen = world.consumer("friend", at=[At("before_commit", "freeze")]).reach("before_commit")
    running = world.relay()
    processes = [worker._process for worker in (frozen, held, running)]
    began = time.monotonic()
    world.nursery.close()
    assert time.monotonic() - began < 2
    for process in processes:
        with pytest.raises(ValueError, match="closed"):
            process.is_alive()


def test_what_cannot_come_to_rest_is_a_violation(world: World) -> None:
    world.edit(3)
    world.publish()
    world.consumer("group", at=[At("before_apply", times=None)])
    world.settle(within=1.0, stop=False)
    assert [violation.name for violation in world.found] == ["no_progress"]
    world.stop(within=0.2)
    assert "unclean_exit" in {violation.name for violation in world.found}
    assert {violation.name for violation in world.check()} >= {"pending_left", "copies_differ"}


def test_starting_a_worker_is_quick(nursery: Nursery) -> None:
    """The fork server has imported everything before: the tests start thousands of them."""
    nursery.start(CommandJob(["--version"])).finish()
    afresh = [sys.executable, "-c", "import tests.faults.workers, tests.faults.nursery"]

    def seconds(start: Callable[[], object]) -> float:
        began = time.monotonic()
        start()
        return time.monotonic() - began

    # the best of some, in turns: the machine may be busy with something else
    pairs = [
        (
            seconds(lambda: nursery.start(CommandJob(["--version"])).finish()),
            seconds(lambda: subprocess.run(afresh, check=True, cwd=CHECKOUT)),
        )
        for _ in range(5)
    ]
    assert min(worker for worker, _ in pairs) < min(process for _, process in pairs) / 2
