"""kill -9, SIGTERM and SIGINT, of every kind of process, at every step: nothing is lost, nothing happens twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from imsync.bus import RetryPolicy
from tests.faults.nursery import Worker
from tests.faults.rig import MakeWorld, World
from tests.faults.steps import CONSUMER_STEPS, DEAD_LETTER_STEPS, PRODUCER_STEPS, RELAY_STEPS, At
from tests.faults.table import Fault, Row

KILLS = 200
"""In all; `--scale` multiplies them."""
WORLDS = 4
"""Among how many worlds they are divided: each begins afresh, and they may run side by side."""

PLACES = [
    *(("producer", step) for step in PRODUCER_STEPS),
    *(("relay", step) for step in RELAY_STEPS),
    *(("consumer", step) for step in CONSUMER_STEPS),
    *(("consumer, dead letters", step) for step in DEAD_LETTER_STEPS),
]
POISON = [b"{", b"", b"\xff\xfe", b'{"specversion":"1.0"}', b"null", b"[" * 1000]


def victim(world: World, rng: random.Random, who: str, *at: At) -> Worker:
    """A process that has something to do."""
    if who == "producer":
        return world.producer(count=rng.randint(5, 15), at=at)
    world.edit(rng.randint(12, 30))
    if who == "relay":
        return world.relay(batch=5, at=at)
    world.publish(batch=rng.choice([3, 1000]))
    service = rng.choice(world.services)
    if who == "consumer, dead letters":
        for _ in range(rng.randint(1, 3)):
            world.inject(rng.choice(POISON))
        at = tuple(At(each.step, each.do, inside=_inside(each.step, "bury")) for each in at)
    else:
        at = tuple(At(each.step, each.do, rng.randint(1, 2), inside=_inside(each.step, "apply")) for each in at)
    return world.consumer(service, at=at, options={"batch": 5})


def _inside(step: str, transaction: str) -> str:
    return transaction if step in ("in_transaction", "before_commit") else ""


def kill_at_a_step(world: World, rng: random.Random, who: str, step: str, row: Row) -> None:
    """One kill, exactly there."""
    worker = victim(world, rng, who, At(step, "die"))
    worker.reach(step)
    assert worker.wait() == -9
    row.reached()


def kill_at_any_moment(world: World, rng: random.Random, rows: dict[str, Row]) -> None:
    """Three kills, of processes that work side by side."""
    workers = {
        "producer": world.producer(count=None),
        "relay": world.relay(batch=5),
        "consumer": world.consumer(rng.choice(world.services), options={"batch": 5}),
    }
    for who in rng.sample(list(workers), 3):
        time.sleep(rng.random() * 0.05)
        worker = workers[who]
        assert worker.alive, f"{worker}: {worker.log}"
        worker.kill()
        assert worker.exit_code == -9
        rows[who].reached()


@pytest.mark.parametrize("part", range(WORLDS))
def test_kills(
    make_world: MakeWorld, fault: Fault, rng: random.Random, scaled: Callable[[int], int], part: int
) -> None:
    """Kills, one after the other and without any pause to recover, at each step in turn and at random moments."""
    world = make_world(proxied=False)
    # an entry on which consumers die again and again is one that kills them; here it is innocent, and we do
    world.consumer_options["retry"] = RetryPolicy(max_attempts=3, max_deaths=1_000_000)
    at_steps = {place: fault(f"kill -9 · {place[0]} · {place[1]}") for place in PLACES}
    at_random = {who: fault(f"kill -9 · {who} · any moment") for who in ("producer", "relay", "consumer")}
    deck: list[tuple[str, str] | None] = []
    kills = 0
    while kills < scaled(KILLS) / WORLDS or kills < len(PLACES) + 3:
        if not deck:
            deck = [*PLACES, None]
            rng.shuffle(deck)
        place = deck.pop()
        if place is None:
            kill_at_any_moment(world, rng, at_random)
        else:
            kill_at_a_step(world, rng, *place, at_steps[place])
        kills += 1 if place else 3
    world.heal()
    world.settle(60)
    violations = world.check()
    assert kills >= scaled(KILLS) / WORLDS
    for row in [*at_steps.values(), *at_random.values()]:
        row.found(violations)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_signal_at_a_step_is_obeyed(make_world: MakeWorld, fault: Fault, rng: random.Random, signal: str) -> None:
    """What is at hand is finished: exit code 0, nothing left pending by the one that was stopped."""
    world = make_world(proxied=False)
    rows = {place: fault(f"{signal} · {place[0]} · {place[1]}") for place in PLACES}
    for (who, step), row in rows.items():
        worker = victim(world, rng, who, At(step))
        worker.reach(step)
        worker.terminate() if signal == "SIGTERM" else worker.interrupt()
        worker.wait_stopping()
        row.reached()
        worker.go_on(for_good=True)
        result = worker.finish(10)
        if "consumer" in result:
            assert result["left_pending"] == 0
            names = world.client.xinfo_consumers("imsync:{user-update}:stream", worker.job.service)
            assert result["consumer"].encode() not in [each["name"] for each in names]
    world.settle()
    violations = world.check(also=["published_twice", "published_out_of_order"])
    for row in rows.values():
        row.found(violations)
