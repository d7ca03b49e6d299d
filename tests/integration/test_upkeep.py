"""What a consumer does about once a minute: it trims what every group has acknowledged, and prunes its settled log."""

from __future__ import annotations

import random

import pytest

from imsync.bus import Retention
from imsync.bus.upkeep import BETWEEN_STEPS_SECONDS, INTERVAL_SECONDS, Upkeep
from tests.consumers import GROUP, Recorder, Rig, Settling
from tests.servers import eventually

NOW = Retention(hours=0, entries=1, min_hours=0)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pruned(Settling):
    """A settled log of so many rows that can be pruned, ten at a time, each taking the clock a while."""

    def __init__(self, rows: int, clock: Clock, seconds: float = 0.0) -> None:
        super().__init__()
        self.rows = rows
        self.asked: list[str] = []
        self._clock = clock
        self._seconds = seconds

    def prune(self, first_id: str) -> int:
        self.asked.append(first_id)
        self._clock.now += self._seconds
        pruned = min(10, self.rows)
        self.rows -= pruned
        return pruned


def trimmable(rig: Rig, number: int = 300) -> list[str]:
    ids = rig.publish(range(1, number + 1))
    rig.drain(Recorder())
    return ids


def test_it_trims_what_is_acknowledged_when_a_minute_is_over(any_rig: Rig) -> None:
    clock = Clock()
    upkeep = Upkeep(any_rig.stream, NOW, Recorder(), clock=clock, rng=random.Random(1))
    trimmable(any_rig)
    upkeep.step()
    assert any_rig.stream.length() == 300, "not at once: it may have been done a moment ago"
    clock.now += INTERVAL_SECONDS
    upkeep.step()
    assert any_rig.stream.length() < 110, "whole nodes go"
    any_rig.publish(range(1, 301))
    any_rig.drain(Recorder())
    left = any_rig.stream.length()
    clock.now += INTERVAL_SECONDS - 1
    upkeep.step()
    assert any_rig.stream.length() == left
    clock.now += 1
    upkeep.step()
    assert any_rig.stream.length() < left


def test_it_never_trims_what_a_group_has_not_acknowledged(any_rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    upkeep = Upkeep(any_rig.stream, NOW, Recorder(), clock=clock)
    ids = trimmable(any_rig)
    any_rig.stream.create_group("slow", ids[149])
    clock.now += INTERVAL_SECONDS
    upkeep.step()
    left = [entry.id for entry in any_rig.stream.range()]
    assert set(ids[150:]) <= set(left)
    assert len(left) < 300
    assert "group slow holds up the trimming" in caplog.text


def test_without_retention_nothing_is_trimmed_and_the_log_is_pruned(rig: Rig) -> None:
    clock = Clock()
    handler = Pruned(25, clock)
    upkeep = Upkeep(rig.stream, None, handler, clock=clock)
    ids = trimmable(rig)
    clock.now += INTERVAL_SECONDS
    upkeep.step()
    assert rig.stream.length() == 300
    assert (handler.rows, handler.asked) == (0, [ids[0]] * 4)


def test_of_an_empty_stream_everything_before_the_last_entry_is_gone(rig: Rig) -> None:
    clock = Clock()
    handler = Pruned(0, clock)
    upkeep = Upkeep(rig.stream, None, handler, clock=clock)
    clock.now += INTERVAL_SECONDS
    upkeep.step()
    assert handler.asked == [], "there is no stream at all"
    ids = trimmable(rig, 3)
    rig.stream.delete(ids)
    clock.now += INTERVAL_SECONDS
    upkeep.step()
    assert handler.asked == [ids[-1]]


def test_pruning_leaves_the_batches_their_turn_and_goes_on_soon(rig: Rig) -> None:
    clock = Clock()
    handler = Pruned(100, clock, seconds=0.02)
    upkeep = Upkeep(rig.stream, None, handler, clock=clock)
    trimmable(rig, 3)
    clock.now += INTERVAL_SECONDS
    steps = 0
    while handler.rows:
        upkeep.step()
        clock.now += BETWEEN_STEPS_SECONDS
        steps += 1
    assert 3 <= steps <= 5


def test_a_consumer_does_it_without_being_asked(rig: Rig) -> None:
    clock = Clock()
    handler = Recorder()
    running = rig.start(handler, retention=NOW, clock=clock)
    rig.publish(range(1, 301))
    eventually(lambda: len(handler.numbers) == 300 and not rig.pending())
    assert rig.stream.length() == 300
    clock.now += INTERVAL_SECONDS
    eventually(lambda: rig.stream.length() < 110)
    running.stop()
    assert rig.stream.groups()[0].name == GROUP
